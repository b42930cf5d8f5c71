"""Two agents on a tiny model, the second of which reads what the first one wrote."""

from __future__ import annotations

import random

from conftest import tiny_model

from kvcomm_agents import Completion, EngineConfig, Message, Request, ReuseConfig, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.models.loading import LoadedModel

WORDS = "amber brick cedar daisy ember fjord grape hazel iris jade kelp lilac maple nylon olive pearl".split()
QUESTIONS = [
    "Which of these comes first, and why do you think so: " + ", ".join(random.Random(n).sample(WORDS, 9)) + "?"
    for n in range(9)
]


def make_speaker() -> LoadedModel:
    """A tiny model that writes letters only, so that its text tokenises to the tokens it wrote."""
    loaded = tiny_model("llama")
    letters = set(loaded.tokenizer("abcdefghijklmnopqrstuvwxyz ,.")["input_ids"])
    head = loaded.model.get_output_embeddings().weight
    head[[index for index in range(head.shape[0]) if index not in letters]] = 0
    return loaded


def made(speaker: LoadedModel, **reuse: object) -> Engine:
    return Engine(speaker, EngineConfig(reuse=ReuseConfig(**{"min_placed": 12, **reuse})))  # type: ignore[arg-type]


def call(engine: Engine, agent: str, text: str, **options: object) -> Completion:
    system = Message("system", f"You are agent {agent} and have instructions of your own, number {len(agent)}.")
    params = SamplingParams(max_tokens=24, temperature=2.0, top_k=3, seed=len(agent) + len(text))  # texts that differ
    request = Request((system, Message("user", text)), params, agent=agent, **options)  # type: ignore[arg-type]
    answer = engine.generate(request)
    engine.settle()
    return answer


def chain(engine: Engine, question: str, **options: object) -> tuple[Completion, Completion]:
    """Two agents: the second reads the question and the first one's answer behind its own words."""
    first = call(engine, "solver", f"Q: {question}\nA:", **options)
    text = f"Check this. The question was: {question}\nThe solver wrote: {first.text}\nIs it right?"
    return first, call(engine, "critic", text, **options)
