"""EngineCore: takes requests from messages to answers on one model. Single-threaded: the worker's own.

A request passes through it in three calls: `begin` renders it, decides how it is prefilled and starts its
generation; `step` takes all that run a forward pass on; `finish` answers it, and `release` remembers its KV and
puts what can be learned from it among the idle work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal

from ..backend import Generation
from ..backends.transformers.backend import TransformersBackend
from ..config import EngineConfig
from ..correction.embedding import Embedder, make_embedder
from ..correction.saved.anchor_file import Snapshot
from ..correction.saved.folders import find_saved, forget_saved
from ..errors import ContextLengthError, EngineClosedError, PromptError, SavedMemoryError
from ..kv.block import Capture, KVBlock
from ..kv.budget import make_budget
from ..kv.prefix_cache import PrefixCache
from ..kv.span_library import Tagged
from ..log import get_logger
from ..models.loading import LoadedModel, tokenizer_fingerprint
from ..observe.report import AuditReport
from ..observe.stats import Account, MemoryPart
from ..observe.telemetry import Telemetry
from ..planning.calibration import find_calibration
from ..planning.idle_work import IdleKind, IdleWork
from ..planning.measurements import Measurements, Measuring
from ..planning.namespace import Namespace
from ..planning.namespaces import Namespaces
from ..planning.policy import Policy
from ..request import Completion, Message, Request
from ..text.detokenizer import Detokenizer, StopStrings
from ..text.prompt import PromptRenderer, Rendered, agent_name
from .active import ActiveRequest
from .answer import Answer
from .idle import IdleScheduler
from .job import Job
from .warmup import Warmup, WarmWork

logger = get_logger(__name__)


class EngineCore:
    """The parts of an engine, and how a request passes through them.

    Args:
        loaded: the model.
        config: budgets and policy.
        telemetry: told of every answer and audit.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, telemetry: Telemetry | None = None) -> None:
        self.loaded, self.config, self.telemetry = loaded, config, telemetry or Telemetry()
        self._made_embedder: Embedder | None = None
        self.backend = TransformersBackend(
            loaded,
            chunk=config.prefill_chunk,
            max_context=config.max_context,
            graphs=config.cuda_graphs,
            relieve=lambda: self.prefixes.release_device(),
        )
        layout, reuse = self.backend.layout, config.reuse
        if reuse.mode == "corrected":
            layout.require_movable()
        self.budget = make_budget(config, layout.device)
        self.backend.spare_bytes = self.budget.spare
        self.prefixes = PrefixCache(layout.device, self.budget.prefixes, self.budget.host_prefixes)
        self.calibration = find_calibration(loaded.name, reuse.calibration)
        self.namespaces = Namespaces(self._recall, self.budget, self._leave)
        self.policy = Policy(self.prefixes, reuse, layout, self.backend.capabilities, self.namespaces)
        self._measurements = Measurements(
            self.backend, self.prefixes, reuse, self.namespaces, self._audited, self.policy.afford
        )
        pack_tokens = min(reuse.pack_tokens, config.prefill_chunk)
        self.warmup = Warmup(self.backend, self.namespaces.get, pack_tokens, reuse.pack_positions)
        self.idle = IdleScheduler(self._run_idle, self._charge, self.budget.queued)
        self.renderer = PromptRenderer(loaded.tokenizer, config.control_strings)
        self._vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
        self.active: list[ActiveRequest] = []
        logger.info("%s", self)

    def __str__(self) -> str:
        layout, config = self.backend.layout, self.config
        bound = f", mean KL of {config.reuse.max_divergence} at most" if config.reuse.mode == "auto" else ""
        return (
            f"serving {self.loaded.name} on {layout.device} in {str(layout.dtype).removeprefix('torch.')}:"
            f" {layout}; reuse level {layout.level}; contexts of {self.max_context} tokens,"
            f" up to {config.max_concurrent} {'together' if self.backend.together else 'in turn'};"
            f" reuse {config.reuse.mode}{bound}; keeping {decimal(self.budget.total)} at most,"
            f" prefixes {decimal(self.prefixes.budget_bytes)} of it; memory kept in"
            f" {config.memory_folder or 'no folder'}"
        )

    @property
    def max_context(self) -> int:
        """Tokens a prompt and its answer may hold together."""
        return self.backend.max_context

    @property
    def full(self) -> bool:
        """Whether no more requests can be begun: as many run as may, or prompts wait for more than the next step."""
        return len(self.active) >= self.config.max_concurrent or not self.backend.has_room

    @property
    def delayed(self) -> bool:
        """Whether a request that runs has waited for idle work already: for more than a chunk of it none should."""
        return any(active.job.idle_s for active in self.active)

    def begin(self, job: Job) -> None:
        """Plan a request's prefill and place what is placed; what is computed waits for `step`.

        Raises:
            PromptError, ContextLengthError, DeviceMemoryError: this request cannot be served.
        """
        started = job.begun = time.perf_counter()
        request, params = job.request, job.request.params
        rendered = self._render(request)
        ids = rendered.ids
        room = self._room(ids)
        if (largest := max(ids)) >= self._vocabulary:
            raise PromptError(f"prompt_ids hold {largest}, and the model's vocabulary ends at {self._vocabulary - 1}")
        matching = time.perf_counter()
        agent = request.agent or agent_name(request.messages, ids)
        cuts = [edge for part in rendered.parts for edge in (part.start, part.stop)]
        tagged = [
            Tagged(part.start, part.stop, tag)
            for part in rendered.parts
            for tag in request.messages[part.message].spans
        ]
        decision = self.policy.decide(ids, agent, request.namespace, request.reuse, cuts, tagged)
        matched = time.perf_counter()
        answer = Answer(
            Detokenizer(self.loaded.tokenizer, keep_special=bool(request.tools)), StopStrings(params.stop), job.emit
        )
        handle = self.backend.start(
            Generation(
                ids=ids,
                plan=decision.plan,
                max_tokens=min(params.max_tokens or room, room),
                sink=answer.take,
                params=params,
                constraint=request.constraint,
                tools=request.tools,
                format=self.renderer.format,
                scored=self._scored(decision.measured),
            )
        )
        active = ActiveRequest(
            job=job,
            agent=agent,
            ids=ids,
            decision=decision,
            answer=answer,
            handle=handle,
            model=self.loaded.name,
            queue_s=started - job.submitted,
            render_s=matching - started,
            match_s=matched - matching,
        )
        job.reporter = active.report
        self.active.append(active)

    def step(self) -> None:
        """Take requests one step on; end those that are done, failed, cancelled or out of time."""
        for active in list(self.active):
            if why := active.job.check():
                self._end(active, why, self.release)
        started = time.perf_counter()
        self.backend.step()
        self.idle.busy(time.perf_counter() - started)
        for active in list(self.active):
            if error := active.handle.error:
                logger.error("a request failed", exc_info=error)
                self._end(active, error, self._drop)
            elif active.handle.finished:
                self._end(active, None, self.finish)

    def finish(self, active: ActiveRequest) -> None:
        """Answer a finished request, then remember its KV."""
        reason = active.handle.finished
        if reason is None:
            raise RuntimeError("finish() before the request has finished")  # a bug, never input
        active.answer.finish()
        report = active.report(reason)
        active.job.context.run(self.telemetry.request, report)
        spans = () if active.forgotten else self.policy.tags(active.served())
        active.job.emit(Completion(active.answer.text, tuple(active.handle.output), reason, report, spans))
        self.release(active)

    def release(self, active: ActiveRequest) -> None:
        """Remember what was computed so far and free its context. For cancelled requests too: their KV is good."""
        try:
            self.backend.cancel(active.handle)
            if active.forgotten:
                return
            request = active.served()
            if request.prefilled:
                self.policy.credit(request)
            self.idle.submit(self.policy.remember(request, self.capture(active), active.handle.scores))
        finally:
            self._drop(active)

    def capture(self, active: ActiveRequest) -> Capture:
        """What copies KV out of a running context."""

        def copied(start: int, stop: int) -> KVBlock:
            return self.backend.capture(active.handle, start, stop)

        return copied

    def expect(self, texts: Sequence[str], namespace: str, *, warm: bool = False) -> None:
        """Have what is known of texts corrected for its likely readers, and with `warm` the other texts warmed."""
        unknown = []
        for text in texts:
            ids = self.renderer.content_ids(text)
            work = self.policy.expect(ids, namespace)
            self.idle.submit(work)
            if not work and len(ids) < self.max_context:
                unknown.append(ids)
        if warm and unknown and self.backend.layout.rope is not None:
            self.warm(WarmWork(unknown, self.first_token, namespace))

    def warm(self, work: WarmWork) -> None:
        """Take texts to be warmed; nothing is computed yet.

        Raises:
            UnsupportedModelError: the KV of this model cannot be moved.
            ContextLengthError: a text is longer than the context, so that no prompt can hold it.
        """
        if self.warmup.accept(work):
            self.idle.submit([work])

    @property
    def first_token(self) -> int:
        """What every prompt of the model begins with: the token that the first place teaches it to lean on."""
        return self.renderer.ids((Message("user", "."),))[0]

    def account(self, namespace: str | None = None) -> Account:
        """What reuse saved and hidden work cost, of a namespace or of all."""
        accounts = [each.ledger.account for name, each in self.namespaces if namespace in (None, name)]
        return sum(accounts, Account())

    def forget(self, namespace: str | None = None) -> None:
        """Drop what a namespace has stored and learned and what was left to do for it, or all of it.

        Nothing of its requests in flight is remembered either; they are answered.
        """
        logger.info("forgetting %s", "everything" if namespace is None else f"namespace {namespace}")
        for active in self.active:
            active.forgotten |= namespace in (None, active.namespace)
        self.warmup.drop(namespace)
        self.idle.drop(namespace)
        self.prefixes.clear(namespace)
        self.namespaces.forget(namespace)
        self._forget_saved(namespace)

    def _forget_saved(self, namespace: str | None) -> None:
        """Remove what was saved of a namespace, or of all that this model has learned in any."""
        root = self.config.memory_folder
        if root is None:
            return
        if namespace is not None:
            forget_saved(self._folder(root, namespace))
            return
        for saved in find_saved(Path(root).expanduser()) if Path(root).expanduser().is_dir() else []:
            if saved.manifest is None or saved.manifest.owner.fingerprint == self.loaded.fingerprint:
                forget_saved(saved.folder)

    def save(self) -> None:
        """Write what every namespace has learned to the configured folder.

        One that cannot be written keeps no other from it; its error is raised in the end, the first of several.
        """
        write_all(self.snapshots())

    def snapshots(self) -> dict[Path, Snapshot | BaseException]:
        """What every namespace has learned, by the folder that it belongs to, or why there is no snapshot of it.

        Quick; writing is for another thread.
        """
        found: dict[Path, Snapshot | BaseException] = {}
        root = self.config.memory_folder
        if root is None:
            return found
        for name, namespace in self.namespaces:
            folder = self._folder(root, name)
            try:
                found[folder] = namespace.snapshot()
            except BaseException as error:
                logger.exception("what %s has learned could not be saved", name)
                found[folder] = error
        return found

    def _save_one(self, namespace: Namespace) -> None:
        """Write what a namespace that has to go has learned."""
        if self.config.memory_folder is not None:
            with suppress(SavedMemoryError):  # logged already
                write_all({self._folder(self.config.memory_folder, namespace.namespace): namespace.snapshot()})

    def _leave(self, namespace: Namespace) -> None:
        """A namespace has to go: save it. One that cannot be saved goes all the same."""
        try:
            self._save_one(namespace)
        except Exception:
            logger.exception("what %s has learned could not be saved, and is lost", namespace.namespace)

    def memory(self) -> tuple[MemoryPart, ...]:
        """What each part of the budget holds. May be called from any thread."""
        prefixes, learned = self.prefixes.stats(), self.namespaces.sizes()
        logits = sum(scores.nbytes for active in list(self.active) if (scores := active.handle.scores) is not None)
        held = {
            "prefixes": prefixes.device_bytes,
            "host_prefixes": prefixes.host_bytes,
            **learned,
            "logits": logits,
            "spare": self.backend.nbytes,
            "queued": self.idle.nbytes,
        }
        allowed = {name: getattr(self.budget, name) for name in held}
        if self.backend.layout.device.type == "cpu":  # one tier
            held = {"prefixes": held.pop("host_prefixes"), **{n: v for n, v in held.items() if n != "prefixes"}}
            allowed["prefixes"] += allowed.pop("host_prefixes")
        return tuple(MemoryPart(name, size, allowed[name]) for name, size in held.items())

    def _scored(self, wanted: int) -> int:
        """Of how many positions distributions may be kept: none if those that are kept already fill their part."""
        running = sum(active.decision.measured for active in self.active)
        return wanted if 4 * self._vocabulary * (running + wanted) <= self.budget.logits else 0

    def close(self) -> None:
        """End what waits to be warmed, and save, if there is a folder to save to.

        A failure to save is logged: what was saved before is still whole.
        """
        self.warmup.close(EngineClosedError("the engine was closed before these texts were warmed"))
        self.idle.drop()
        with suppress(BaseException):  # logged already
            self.save()

    def _render(self, request: Request) -> Rendered:
        if request.prompt_ids is not None:
            return Rendered(request.prompt_ids, ())
        return self.renderer.segments(request.messages, request.tools, request.constraint)

    def _room(self, ids: Sequence[int]) -> int:
        """Tokens that an answer to a prompt may have."""
        if not ids:
            raise PromptError("the prompt is empty; it needs at least one token")
        room = self.max_context - len(ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the context holds {self.max_context}, one of them for the"
                " answer; shorten the messages or raise max_context if the model allows it"
            )
        return room

    def _end(self, active: ActiveRequest, why: BaseException | None, work: Callable[[ActiveRequest], None]) -> None:
        """Tell why a request stops, if it was not done, and do the last work for it."""
        self.active.remove(active)
        if why is not None:
            active.job.emit(why)
        try:
            work(active)
        except BaseException as error:  # whatever it is, it is this request's alone
            logger.exception("a request failed")
            active.job.emit(error)
            self._drop(active)

    def _drop(self, active: ActiveRequest) -> None:
        self.backend.close(active.handle)

    def _run_idle(self, work: IdleWork) -> Measuring:
        return self.warmup.run(work) if isinstance(work, WarmWork) else self._measurements.run(work)

    def _charge(self, namespace: str, kind: IdleKind, tokens: int) -> None:
        self.policy.charge(namespace, kind, tokens)

    def _audited(self, report: AuditReport) -> None:
        self.policy.auditor.audited()
        self.telemetry.audit(report)

    def _recall(self, namespace: str) -> Namespace:
        """A namespace, with what an earlier process saved of it if that is whole and of this model."""
        tokenizer = self.loaded.tokenizer
        made = Namespace(
            self.config.reuse,
            self.loaded.fingerprint,
            self._embedder,
            lambda ids: str(tokenizer.decode(list(ids))),
            namespace,
            self.loaded.name,
            tokenizer_fingerprint(tokenizer),
            self.calibration,
            self.budget.spans,
            self.budget.anchors,
            self.budget.maps,
        )
        if self.config.memory_folder is not None:
            folder = self._folder(self.config.memory_folder, namespace)
            try:
                made.load(folder)
            except SavedMemoryError as error:
                logger.error("starting with an empty memory: %s", error)
            except Exception:  # whatever is wrong with a file must fail no request
                logger.exception("starting with an empty memory: %s cannot be read", folder)
        return made

    def _folder(self, root: str, namespace: str) -> Path:
        name = hashlib.sha256(f"{self.loaded.fingerprint}\n{namespace}".encode()).hexdigest()[:16]
        return Path(root).expanduser() / name

    def _embedder(self) -> Embedder:
        if self._made_embedder is None:
            self._made_embedder = make_embedder(self.config.embedder, self.loaded.model, self.loaded.tokenizer)
        return self._made_embedder


def write_all(snapshots: Mapping[Path, Snapshot | BaseException]) -> None:
    """Write snapshots, each to its folder. One that cannot be written keeps no other from it.

    Raises:
        SavedMemoryError: the error of the first that could not.
    """
    failed = list[BaseException]()
    for folder, snapshot in snapshots.items():
        if isinstance(snapshot, BaseException):
            failed.append(snapshot)
            continue
        try:
            started = time.perf_counter()
            snapshot.write(folder)
            logger.info("saved %s to %s in %.2f s", snapshot, folder, time.perf_counter() - started)
        except BaseException as error:
            logger.exception("what %s has learned could not be saved", snapshot.owner.namespace)
            failed.append(error)
    if failed:
        raise failed[0]
