"""What each benchmark is told: frozen dataclasses, of which its command is made. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kvcomm_agents.entrypoints.cli.console import DTypeName, Model
from kvcomm_agents.errors import ConfigError

Count = Annotated[int, typer.Option(min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or any torch device.")]
Shape = Annotated[str, typer.Option(help="Random weights of this shape instead of a model: llama-8b, llama-1b.")]
Data = Annotated[Path | None, typer.Option(help="Folder with the question sets; else $KVCOMM_DATA, then the hub.")]
Set = Annotated[str, typer.Option("--set", help="gsm8k or humaneval.")]
Evaluation = Annotated[int, typer.Option("--eval", min=1, help="Questions that are measured.")]
Names = Annotated[str, typer.Option(help="Which, separated by commas; all if left out.")]
Tokens = Annotated[str, typer.Option(help="Tokens, by commas; the paper's if left out.")]


def names(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names separated by commas; all of `known` if there are none.

    Raises:
        ConfigError: one is not known.
    """
    wanted = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"there is no {what} {', '.join(unknown)}; choose from {', '.join(known)}")
    return wanted or tuple(known)


def numbers(text: str, usual: Sequence[int] = ()) -> tuple[int, ...]:
    """Whole numbers from 1 on, separated by commas; `usual` if there are none.

    Raises:
        ConfigError: it is something else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts) or not (parts or usual):
        raise ConfigError(f"{text!r} is no list of whole numbers from 1 on; write 1,2,4 for instance")
    return tuple(int(part) for part in parts) or tuple(usual)


@dataclass(frozen=True, kw_only=True)
class NameOptions:
    """A model by its name."""

    model: Model = "default"
    dtype: DTypeName = "auto"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(NameOptions):
    """A model, or random weights of a shape, and where it runs."""

    device: Device = "auto"
    shape: Shape = ""


@dataclass(frozen=True, kw_only=True)
class DataOptions(ModelOptions):
    """A model, and text to ask it."""

    data: Data = None


@dataclass(frozen=True, kw_only=True)
class FidelityOptions(DataOptions):
    """Divergence from dense and tokens computed, strategy by strategy."""

    questions: Set = "gsm8k"
    warmup: Count = 16
    evaluation: Evaluation = 32
    strategies: Names = ""


@dataclass(frozen=True, kw_only=True)
class JudgesOptions(FidelityOptions):
    """Whether a judge of four answers picks as it does when prefilled densely."""

    warmup: Count = 8
    evaluation: Evaluation = 24


@dataclass(frozen=True, kw_only=True)
class ShiftOptions(DataOptions):
    """Guarded reuse while the kind of text changes: GSM8K, HumanEval, other languages and registers, GSM8K again."""

    warmup: Count = 16
    evaluation: Annotated[int, typer.Option("--eval", min=1, help="Questions of each later set.")] = 12


@dataclass(frozen=True, kw_only=True)
class StreamOptions(DataOptions):
    """Guarded reuse from a cold start, over a stream of questions."""

    questions: Set = "gsm8k"
    evaluation: Evaluation = 100


@dataclass(frozen=True, kw_only=True)
class TtftOptions(DataOptions):
    """Time to first token beside transformers, a prefix cache, llama.cpp and vLLM, on the same real text."""

    agents: Count = 5
    prefix: Annotated[int, typer.Option(min=1, help="Tokens of each agent's instructions.")] = 512
    question: Annotated[int, typer.Option(min=1, help="Tokens of the question.")] = 1024
    output: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 512
    cold: Annotated[int, typer.Option(min=1, help="Requests to learn from, from a cold start.")] = 8
    steady: Annotated[int, typer.Option(min=1, help="Requests measured after them, with every column.")] = 3
    replay: Annotated[str, typer.Option(help="Play real logs instead: autogen or magentic.")] = ""
    logs: Annotated[int, typer.Option(min=1, help="With --replay: how many.")] = 6
    limit: Annotated[int, typer.Option(min=16, help="With --replay: a log ends where a context is longer.")] = 4096
    columns: Annotated[
        str, typer.Option(help="generate, dense, prefix, exact, guarded, corrected; all but the last if left out.")
    ] = "generate,dense,prefix,exact,guarded"
    peers: Annotated[str, typer.Option(help="llama.cpp, llama.cpp-reuse, vllm, by commas; or none.")] = ""
    llama_server: Annotated[str | None, typer.Option(help="llama.cpp's server, if it is not on the path.")] = None
    gguf: Annotated[Path | None, typer.Option(help="The model as llama.cpp wants it.")] = None
    vllm_python: Annotated[str | None, typer.Option(help="An interpreter that has vLLM.")] = None


@dataclass(frozen=True, kw_only=True)
class GridOptions(DataOptions):
    """Mean speedup of three agents by the lengths of their instructions and answers (the paper's Table 3)."""

    prefixes: Tokens = ""
    outputs: Tokens = ""
    question: Count = 512


@dataclass(frozen=True, kw_only=True)
class GrowthOptions(DataOptions):
    """Time to first token, match time and memory: 0.5K to 8K tokens, 2 to 16 agents, 10 to 100,000 known spans."""

    kinds: Annotated[str, typer.Option(help="context, agents, spans; all if left out.")] = ""


@dataclass(frozen=True, kw_only=True)
class HitpathOptions(ModelOptions):
    """What finding, correcting and placing spans costs beside what it saves."""

    dtype: DTypeName = "float32"
    known: Annotated[int, typer.Option(min=0, help="Spans known beside those in the prompt.")] = 10_000
    rounds: Count = 5


@dataclass(frozen=True, kw_only=True)
class EngineOptions(ModelOptions):
    """The runner against transformers itself, and a prefix hit against its floor."""

    dtype: DTypeName = "float32"
    rounds: Count = 7


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(DataOptions):
    """Tokens per second and time between tokens of concurrent requests, decoded together and in turn."""

    dtype: DTypeName = "float32"
    requests: Annotated[str, typer.Option(help="How many at once, separated by commas.")] = "1,2,4,8,16"
    tokens: Count = 48
    rounds: Count = 3


@dataclass(frozen=True, kw_only=True)
class RagOptions(DataOptions):
    """A team that reads retrieved passages, with and without a warm-up of these."""

    dtype: DTypeName = "float32"
    warmup: Count = 8
    evaluation: Evaluation = 12
    passages: Count = 4
    words: Annotated[int, typer.Option(min=10, help="Of each passage.")] = 80
    mode: Annotated[str, typer.Option(help="auto or corrected.")] = "auto"
    max_divergence: float = 0.02


@dataclass(frozen=True, kw_only=True)
class WarmOptions(ModelOptions):
    """Packs and their masks against prefilling every text by itself."""

    dtype: DTypeName = "float32"
    rounds: Count = 3
    most: Annotated[int, typer.Option(min=64, help="Tokens in the largest pack.")] = 2048
    flex: Annotated[bool, typer.Option(help="Measure FlexAttention too; it is compiled for every length.")] = True


@dataclass(frozen=True, kw_only=True)
class NumericsOptions(ModelOptions):
    """What a shift of all positions changes, by dtype, and what moving stored keys does to them."""

    dtype: DTypeName = "float32"
    tokens: Annotated[int, typer.Option(min=32, help="Of the text that is shifted and moved.")] = 256


@dataclass(frozen=True, kw_only=True)
class PlayOptions(DataOptions):
    """An app whose calls are served in order from a cold start."""

    mode: Annotated[str, typer.Option(help="auto, corrected, exact or off.")] = "auto"
    busy: Annotated[bool, typer.Option("--busy", help="Never do idle work; else all of it, after every call.")] = False


@dataclass(frozen=True, kw_only=True)
class EconomyOptions(PlayOptions):
    """What reuse saves an app from its first call on, with all hidden work charged, and its true divergence."""

    team: Annotated[
        str, typer.Option(help="math, rag, code, edit, desk, five, autogen, magentic, by commas; all if left out.")
    ] = ""
    questions: Annotated[int, typer.Option(min=1, help="Requests of each; of autogen and magentic, logs.")] = 8
    limit: Annotated[int, typer.Option(min=16, help="A log ends where a context is longer.")] = 2200


@dataclass(frozen=True, kw_only=True)
class ChangedOptions(PlayOptions):
    """Prompts of which a few words differ from the one before: clocks, tools in another order, sliding windows."""

    cases: Annotated[
        str, typer.Option(help="clock, worker, tools, documents, example, summary, window; all if left out.")
    ] = ""
    prompts: Annotated[int, typer.Option(min=2, max=8, help="Of each; the first one is not counted.")] = 5
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 24


@dataclass(frozen=True, kw_only=True)
class AppsOptions(NameOptions):
    """What is found and placed in LangChain apps, from their second run on."""

    files: Annotated[list[Path], typer.Argument(help="Python files with `build(llm)`, `INPUT` and `MORE`, or folders.")]
    runs: Count = 8
    max_tokens: Count = 40


@dataclass(frozen=True, kw_only=True)
class ServeOptions(NameOptions):
    """1, 4 and 16 runs of a LangGraph team at the same time, on one model."""

    reuse: Annotated[str, typer.Option(help="exact, auto, corrected or off.")] = "exact"
    runs: Count = 16
    rounds: Count = 2
    max_tokens: Count = 16


@dataclass(frozen=True, kw_only=True)
class LoadOptions(NameOptions):
    """Chains of three agents on some threads, without a pause, so without idle time; each mode in a fresh process."""

    modes: Names = "exact,auto"
    threads: Count = 4
    seconds: Annotated[int, typer.Option(min=1, help="Of CPU time that each mode gets.")] = 60
    max_tokens: Count = 24

    @property
    def wanted(self) -> tuple[str, ...]:
        """The modes.

        Raises:
            ConfigError: there is no such mode.
        """
        return names(self.modes, ("off", "exact", "auto", "corrected"), "mode")
