"""One contract for every engine behind the seam: what policy may rely on, whatever executes its plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_backend import MemoryBackend

from kvcomm_agents.backend import Backend, Generation
from kvcomm_agents.backends.transformers.backend import TransformersBackend
from kvcomm_agents.config import ReuseConfig
from kvcomm_agents.engine.idle import IdleScheduler
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.prefix_cache import PrefixCache
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import Computed, Placed, PrefillPlan, dense
from kvcomm_agents.planning.measurements import Measurements
from kvcomm_agents.planning.namespace import Namespace
from kvcomm_agents.planning.namespaces import Namespaces
from kvcomm_agents.planning.policy import Policy
from kvcomm_agents.planning.served import ServedRequest

IDS = tuple((7 * index + index * index) % 61 for index in range(60))
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(scope="module", params=["transformers", "in memory", "in memory, in blocks"])
def engine(request: pytest.FixtureRequest, tiny: Callable[[str], LoadedModel]) -> Backend:
    if request.param == "transformers":
        return TransformersBackend(tiny("llama"), chunk=16)
    return MemoryBackend(block=16 if "blocks" in request.param else 1)


def more(token: int) -> bool:
    return True


def generate(engine: Backend, ids: Sequence[int], plan: PrefillPlan | None = None, **options: Any) -> list[int]:
    handle = engine.start(
        Generation(tuple(ids), plan or dense(len(ids)), options.pop("max_tokens", 8), more, **options)
    )
    while handle.finished is None and handle.error is None:
        engine.step()
    output = list(handle.output)
    engine.close(handle)
    return output


def logits_of(engine: Backend, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan, chunk: int = 16) -> Any:
    scoring = engine.score(ids, output, plan, chunk)
    while scoring.advance():
        pass
    try:
        return scoring.scores, scoring.capture(0, len(ids) + len(output))
    finally:
        scoring.close()


def partition(block: KVBlock, cuts: Sequence[int], length: int, edge: int) -> PrefillPlan:
    """Alternating runs, cut at edges where that is all an engine takes; the last one computed."""
    edges = sorted({-(-cut // edge) * edge for cut in cuts if 0 < cut < length} | {0, length})
    edges = [each for each in edges if each < length] + [length]
    runs: list[Any] = []
    for index, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        last = stop == length
        runs.append(Computed(start, stop) if last or index % 2 else Placed(start, stop, block.slice(start, stop), True))
    return PrefillPlan(tuple(runs))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 58), max_size=7), moved=st.booleans(), chunk=st.integers(1, 30))
def test_any_partition_into_placed_and_computed_runs_equals_dense(
    engine: Backend, cuts: list[int], moved: bool, chunk: int
) -> None:
    output = IDS[:5]
    expected, block = logits_of(engine, IDS, output, dense(len(IDS)))
    if moved:
        block = block.unrotated(engine.layout.require_movable())
    plan = partition(block, cuts, len(IDS), engine.capabilities.block)
    scores, captured = logits_of(engine, IDS, output, plan, chunk)
    torch.testing.assert_close(scores.logits, expected.logits, **CLOSE)
    assert expected.divergence(scores).mean < 1e-5
    torch.testing.assert_close(captured.values, logits_of(engine, IDS, output, dense(len(IDS)))[1].values, **CLOSE)


def test_what_is_generated_is_what_scores_say(engine: Backend) -> None:
    output = generate(engine, IDS, max_tokens=10)
    scores, _ = logits_of(engine, IDS, output, dense(len(IDS)))
    assert scores.logits.argmax(-1).tolist()[: len(output)] == output


def test_together_each_says_what_it_says_alone_whoever_is_given_up(engine: Backend) -> None:
    prompts = [IDS[:40], IDS[5:25], IDS[::-1], IDS[10:58]]
    alone = [generate(engine, prompt) for prompt in prompts]
    handles = [engine.start(Generation(tuple(prompt), dense(len(prompt)), 8, more)) for prompt in prompts]
    while not handles[2].reached:
        engine.step()
    engine.cancel(handles[2])
    reached = handles[2].reached
    while any(handle.finished is None for index, handle in enumerate(handles) if index != 2):
        engine.step()
    for index in (0, 1, 3):
        assert list(handles[index].output) == alone[index]
    assert 0 < handles[2].reached == reached <= len(prompts[2]) + 8
    kept = engine.capture(handles[2], 0, min(reached, len(prompts[2])))
    _, whole = logits_of(engine, prompts[2], (), dense(len(prompts[2])))
    torch.testing.assert_close(kept.values, whole.values[:, :, : kept.tokens], **CLOSE)
    for handle in handles:
        engine.close(handle)
        engine.close(handle)


def test_a_caller_who_has_enough_stops_it_and_one_who_fails_fails_alone(engine: Backend) -> None:
    given: list[int] = []

    def enough(token: int) -> bool:
        given.append(token)
        return len(given) < 3

    def failing(token: int) -> bool:
        raise SystemExit("gone")

    stopped = engine.start(Generation(IDS, dense(len(IDS)), 20, enough))
    failed = engine.start(Generation(IDS[:30], dense(30), 20, failing))
    good = engine.start(Generation(IDS[3:], dense(len(IDS) - 3), 6, more))
    while good.finished is None or stopped.finished is None:
        engine.step()
    assert (stopped.finished, list(stopped.output)) == ("stop", given)
    assert isinstance(failed.error, SystemExit)
    assert list(good.output) == generate(engine, IDS[3:], max_tokens=6)
    for handle in (stopped, failed, good):
        engine.close(handle)


def test_scores_are_as_many_as_asked_and_keep_nothing_else_alive(engine: Backend) -> None:
    handle = engine.start(Generation(IDS, dense(len(IDS)), 10, more, scored=4))
    other = engine.start(Generation(IDS[1:], dense(len(IDS) - 1), 10, more))
    assert handle.scores is None
    while handle.finished is None:
        engine.step()
    scores = handle.scores
    assert scores is not None
    assert len(scores) == 4
    assert scores.nbytes == 4 * scores.logits.shape[1] * 4
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in handle.rows)
    assert scores.divergence(scores).mean == 0
    exact, _ = logits_of(engine, IDS, handle.output[:3], dense(len(IDS)))
    assert exact.divergence(scores).mean < 1e-5
    wrong, _ = logits_of(engine, IDS[::-1], handle.output[:3], dense(len(IDS)))
    assert exact.divergence(wrong).mean > 1e-3
    assert len(exact.head(2)) == 2
    engine.close(handle)
    engine.close(other)


def test_texts_side_by_side_are_as_each_alone(engine: Backend) -> None:
    texts = [IDS[:20], IDS[30:37], IDS[5:6]]
    together = engine.prefill_texts(texts, 3)
    for text, block in zip(texts, together, strict=True):
        (alone,) = engine.prefill_texts([text], 3)
        assert block.position is None
        torch.testing.assert_close(block.values, alone.values, **CLOSE)
        torch.testing.assert_close(block.keys, alone.keys, **CLOSE)


def test_a_scoring_may_be_given_up_half_way(engine: Backend) -> None:
    scoring = engine.score(IDS, (), dense(len(IDS)), 5)
    assert scoring.advance() == 5
    assert scoring.left == len(IDS) - 5
    scoring.close()
    scoring.close()
    assert engine.free_memory() >= 0
    assert generate(engine, IDS[:20])


class Core:
    """Policy and idle work over an engine, and nothing else."""

    def __init__(self, engine: Backend, reuse: ReuseConfig) -> None:
        self.engine = engine
        self.prefixes = PrefixCache(engine.layout.device, 1 << 30, 0)
        self.namespaces = Namespaces(
            lambda name: Namespace(reuse, "model", _no_embedder, lambda ids: str(list(ids)), name)
        )
        self.policy = Policy(self.prefixes, reuse, engine.layout, engine.capabilities, self.namespaces)
        self.audits: list[Any] = []
        measurements = Measurements(
            engine, self.prefixes, reuse, self.namespaces, self.audits.append, self.policy.afford
        )
        self.idle = IdleScheduler(measurements.run, self.policy.charge)

    def serve(self, agent: str, ids: Sequence[int], namespace: str = "a", mode: Any = None) -> Any:
        decision = self.policy.decide(tuple(ids), agent, namespace, mode)
        for before, run in zip(decision.plan.runs, decision.plan.runs[1:], strict=False):
            if isinstance(run, Placed) and isinstance(before, Computed):
                assert run.start % self.engine.capabilities.block == 0
        handle = self.engine.start(Generation(tuple(ids), decision.plan, 30, more, scored=decision.measured))
        while handle.finished is None:
            self.engine.step()
        request = ServedRequest(namespace, agent, tuple(ids), tuple(handle.output), decision, handle.reached)
        self.policy.credit(request)
        work = self.policy.remember(request, lambda a, b: self.engine.capture(handle, a, b), handle.scores)
        self.idle.submit(work)
        self.engine.close(handle)
        return request


class _Embedder:
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.ones(len(texts), 3), dim=1)


def _no_embedder() -> Any:
    return _Embedder()


def test_policy_runs_on_an_engine_that_has_no_model_of_torch() -> None:
    """Reuse from the first reading, audits, exactness, namespaces, forgetting: all of it, and no transformers."""
    for block in (1, 16):
        engine = MemoryBackend(block=block, max_context=8192)
        core = Core(engine, ReuseConfig(max_divergence=100.0, audit_share=1.0, min_placed=12))
        for question in range(6):
            texts = [(index * 5 + question * 11 + index * index * (question + 1)) % 60 for index in range(130)]
            first = core.serve("solver", [*IDS[:30], *texts])
            second = core.serve("critic", [*IDS[30:55], 1, 2, 3, *texts, 4, 5, *first.output, 6, 7])
            core.idle.finish()
        assert second.decision.plan.placed_tokens(exact=False) > 40
        assert core.audits
        assert core.namespaces.get("a").ledger.account.saved > 0
        prompt = list(second.ids)
        exact = core.serve("critic", prompt, mode="exact")
        assert list(exact.output) == list(core.serve("critic", prompt, mode="off").output)
        assert core.serve("critic", prompt, namespace="b").decision.plan.placed == ()
        other = [*IDS[30:55], 1, 2, 3, *reversed(texts), 4, 5, *first.output, 6, 7]
        core.serve("critic", other)
        assert len(core.idle) > 0
        core.idle.step()
        core.idle.drop("a")
        core.prefixes.clear("a")
        core.namespaces.forget("a")
        core.idle.finish()
        assert core.serve("critic", prompt).decision.plan.placed == ()
        core.idle.drop()
        assert engine.open == 0
