"""Doctor: whether an engine would run here, with which model, and what would fit in memory. Loads no weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..._version import __version__
from ...config import EngineConfig
from ...errors import KVCommError, ModelError, UnsupportedModelError
from ...extras import EXTRAS, has_extra
from ...models.loading import chosen_dtype, require_causal, torch_device
from ...models.resolve import resolve

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from ...kv.budget import MemoryBudget

Verdict = Literal["ok", "note", "broken"]

_VERSIONS = ("torch", "transformers", "sentence-transformers", "safetensors", "tokenizers", "accelerate")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `broken` must be mended before an engine runs as configured."""

    what: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model, by its config: bytes, and tokens of KV.

    Args:
        parameters: weights, shared ones counted once.
        weight_bytes: they take.
        layers, kv_heads, key_dim, value_dim: of its KV.
        token_bytes: of KV per token.
        context: tokens a prompt and its answer may hold together; 0 if the config does not say.
        free_bytes: of memory where the model would run; 0 if that is not known.
        budget: what an engine made now would keep beside the weights; `None` if that is not known.
    """

    parameters: int
    weight_bytes: int
    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    token_bytes: int
    context: int
    free_bytes: int
    budget: MemoryBudget | None = None

    @property
    def context_bytes(self) -> int:
        """KV of the longest request."""
        return self.context * self.token_bytes

    def tokens_in(self, budget: int) -> int:
        """Tokens whose KV fits in so many bytes."""
        return max(budget, 0) // self.token_bytes


@dataclass(slots=True)
class Examination:
    """What was found; `sizes` once the model's config could be read."""

    findings: list[Finding] = field(default_factory=list)
    sizes: Sizes | None = None

    @property
    def broken(self) -> bool:
        """Whether anything must be mended."""
        return any(one.verdict == "broken" for one in self.findings)

    def add(self, what: str, text: str, verdict: Verdict = "ok") -> None:
        """Note a finding."""
        self.findings.append(Finding(what, verdict, text))

    @contextmanager
    def looking_at(self, what: str) -> Iterator[None]:
        """What goes wrong on purpose is a finding."""
        try:
            yield
        except KVCommError as error:
            self.add(what, str(error), "broken")


def examine(model: str, config: EngineConfig) -> Examination:
    """Look at the installation, the device, a model's config and the configured folders.

    Args:
        model: hub id, folder or GGUF file. A hub id that is not here has its config fetched.
        config: what an engine would run with.
    """
    found = Examination()
    _packages(found)
    _folders(found, config)
    with found.looking_at("device"):
        device = torch_device(config.device)
        from ...kv.budget import free_bytes

        free = free_bytes(device)
        _device(found, config, device, free)
        with found.looking_at("model"):
            _model(found, model, config, device, free)
    return found


def _packages(found: Examination) -> None:
    found.add("kvcomm-agents", f"{__version__}, Python {platform.python_version()}")
    found.add("versions", ", ".join(f"{name} {_version(name)}" for name in _VERSIONS))
    wrong = _unmet()
    if wrong:
        found.add("requirements", "; ".join(wrong), "broken")
    there = [name for name in EXTRAS if has_extra(name)]
    absent = [name for name in EXTRAS if name not in there]
    found.add("extras", f"installed: {', '.join(there) or 'none'}; not: {', '.join(absent) or 'none'}")


def _folders(found: Examination, config: EngineConfig) -> None:
    if config.memory_folder is not None:
        from ...correction.saved.folders import find_saved

        folder = Path(config.memory_folder).expanduser()
        if folder.is_dir():
            saved = find_saved(folder)
            bad = sum(one.manifest is None for one in saved)
            text = f"{folder}: {len(saved)} saved" + (
                f", {bad} of them unreadable; see kvcomm memory verify" if bad else ""
            )
            found.add("memory folder", text, "note" if bad else "ok")
        _writable(found, "memory folder", folder)
    if config.report_file is not None:
        _writable(found, "report file", Path(config.report_file).expanduser(), needs_parent=True)


def _writable(found: Examination, what: str, path: Path, *, needs_parent: bool = False) -> None:
    """Whether it is there and can be written, or can be made."""
    nearest = path
    while not nearest.exists() and nearest != nearest.parent and not (needs_parent and nearest == path.parent):
        nearest = nearest.parent
    if not nearest.exists():
        found.add(what, f"there is no folder {nearest}", "broken")
    elif not os.access(nearest, os.W_OK):
        found.add(what, f"{nearest} cannot be written to", "broken")
    elif nearest != path:
        found.add(what, f"{path}, made when it is needed")


def _device(found: Examination, config: EngineConfig, device: torch.device, free: int) -> None:
    import torch

    seen = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    why = (
        f"asked for as {config.device!r}"
        if config.device != "auto"
        else "auto: " + ("the first CUDA device" if device.type == "cuda" else "torch sees no CUDA device")
    )
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    room = f", {free / 1e9:.1f} GB of memory free" if free else ""
    found.add("device", f"{device} ({why}){threads}{room}" + (f"; CUDA devices: {', '.join(seen)}" if seen else ""))
    if device.type == "cuda":
        from ...backends.transformers.kernels.launch import available

        if available(device):
            graphs = "recorded as graphs" if config.cuda_graphs else "not recorded: cuda_graphs is off"
            found.add("kernels", f"Triton: placing is one launch, and small passes are {graphs}")
        else:
            found.add("kernels", "no Triton: placing and small passes take a launch for every step", "note")


def _model(found: Examination, name: str, config: EngineConfig, device: torch.device, free: int) -> None:
    from transformers import AutoConfig

    from ...models.loading import as_model_errors

    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        from ...models.gguf import converted

        if converted(path) is None:
            text = f"{path} is converted at its first use; `kvcomm models fetch {path}` does that now"
            found.add("model", text, "note")
            return
    folder = resolve(name)
    with as_model_errors(name, str(folder)):
        described = AutoConfig.from_pretrained(str(folder))
    require_causal(described, name)
    text_config = described.get_text_config(decoder=True)
    found.add("model", f"{name}: {', '.join(described.architectures or [described.model_type])}, in {folder}")
    dtype, why = chosen_dtype(config.dtype, device, getattr(text_config, "dtype", None))
    found.add("dtype", f"{dtype}: {why}")
    _support(found, described, dtype, config, device, free)


def _support(
    found: Examination, described: PretrainedConfig, dtype: str, config: EngineConfig, device: torch.device, free: int
) -> None:
    """Whether its KV can be moved, and what it would take."""
    from ...backends.transformers.outline import outline
    from ...kv.budget import make_budget

    try:
        layout, parameters, weight_bytes = outline(described, dtype, config.max_context)
    except ModelError as error:
        found.add("reuse", str(error), "broken" if isinstance(error, UnsupportedModelError) else "note")
        return
    if layout.reason:
        needs = config.reuse.mode == "corrected"
        served = "exact prefixes only" if layout.level == "exact" else "served plainly, without reuse"
        text = f"level {layout.level}: {served}, because {layout.reason}"
        text += "; reuse mode 'corrected' needs more: set KVCOMM_REUSE=exact" if needs else ""
        found.add("reuse", text, "broken" if needs else "note")
    else:
        found.add("reuse", f"level full, mode {config.reuse.mode!r}: its KV can be moved, as far as the config tells")
    limit = getattr(described.get_text_config(decoder=True), "max_position_embeddings", None)
    sizes = Sizes(
        parameters,
        weight_bytes,
        layout.layers,
        layout.kv_heads,
        layout.key_dim,
        layout.value_dim,
        layout.token_bytes,
        min((one for one in (limit, config.max_context) if one), default=0),
        free,
        make_budget(config, device, max(free - weight_bytes, 0)) if free else None,
    )
    found.sizes = sizes
    _fit(found, sizes, config, device)


def _fit(found: Examination, sizes: Sizes, config: EngineConfig, device: torch.device) -> None:
    if not sizes.free_bytes:
        return
    left = sizes.free_bytes - sizes.weight_bytes
    if left < sizes.token_bytes:
        text = f"the weights take {sizes.weight_bytes / 1e9:.1f} GB and {sizes.free_bytes / 1e9:.1f} GB are free"
        found.add("memory", f"{text}; take a smaller model, or dtype bfloat16", "broken")
        return
    budget = sizes.budget
    kept = budget.total - (budget.host_prefixes if device.type != "cpu" else 0) if budget else 0
    most = kept + sizes.context_bytes
    if most > left:
        text = f"with the weights, one full context and full budgets {(sizes.weight_bytes + most) / 1e9:.1f} GB"
        found.add("memory", f"{text} are wanted and {sizes.free_bytes / 1e9:.1f} free: lower the budgets", "note")
    else:
        found.add("memory", f"weights, one full context and full budgets fit; {(left - most) / 1e9:.1f} GB to spare")


def _unmet() -> list[str]:
    """Requirements of this package that what is installed does not meet."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in requires("kvcomm-agents") or ()]
    except PackageNotFoundError:
        return ["kvcomm-agents is not installed, only importable"]
    wrong = []
    for one in asked:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        have = _version(one.name)
        if have == "missing" or not one.specifier.contains(have, prereleases=True):
            wrong.append(f"{one} is needed, and {have} is here")
    return wrong


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
