"""The corrector docs/correctors.md shows works."""

import re
from pathlib import Path

import torch

from kvcomm_agents.correction import Example, Slot
from kvcomm_agents.kv import KVBlock

PAGE = Path(__file__).parents[2] / "docs" / "correctors.md"


def test_the_skeleton_corrects_all_but_layer_0():
    names = {"__name__": "docs"}
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    exec(compile(code, PAGE.name, "exec"), names)
    corrector, slot = names["LastCorrector"](), Slot("writer", "question")
    base = KVBlock(torch.zeros(3, 2, 5, 4), torch.zeros(3, 2, 5, 4))
    assert corrector.correct(slot, base).block is base
    corrector.learn(slot, Example(base, KVBlock(base.keys + 1, base.values + 2)))
    moved = corrector.correct(slot, base).block
    assert (moved.keys[1:] == 1).all()
    assert (moved.values[1:] == 2).all()
    assert (moved.keys[0] == 0).all()
    assert (base.keys == 0).all()
    corrector.forget("writer")
    assert corrector.knows(slot) == corrector.nbytes == 0
