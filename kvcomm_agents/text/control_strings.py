"""Control strings: what a tokenizer makes control tokens of, and how the template's are told from those in texts.

A chat template makes one string of everything, and the tokenizer then finds `<|im_end|>` in it, whoever wrote it.
Here a prompt is rendered with marks in what comes from messages, so that it is known which control strings are the
template's own. Only these become control tokens.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Control:
    """A control string of the template's own at `start:stop` of a prompt text, in characters."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class MarkedPrompt:
    """A prompt text, with its marks taken out again.

    Args:
        text: as the template makes it.
        controls: its own control strings, in order.
        forged: control strings that stand in the text, and are not the template's own.
    """

    text: str
    controls: tuple[Control, ...]
    forged: int


class ControlStrings:
    """The control strings of one tokenizer.

    These are its special tokens, and those of its other added tokens that the template writes (`<tool_call>`) or
    that look like a special one (`<|fim_prefix|>`). Words and white space that were added are none.

    Args:
        tokenizer: of the model.
        template: all that is written around the texts of messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._tokenizer = tokenizer
        added = {str(token.content): token for token in tokenizer.added_tokens_decoder.values()}
        self._tokens = {text: token for text, token in added.items() if _is_control(token, template)}
        # Nobody can guess it, so no text holds it; decimal digits pass through every filter of a template.
        self._nonce = f"{secrets.randbelow(10**32):032d}"
        self._stand_ins = {text: f"\ue000{self._nonce}{index}\ue001" for index, text in enumerate(self._tokens)}
        heads = sorted({text[0] for text in self._tokens})
        self._heads = heads
        self._marks = {ord(head): f"{self._nonce}{index:04d}" for index, head in enumerate(heads)}
        self._head = re.compile(f"[{re.escape(''.join(heads))}]" if heads else "(?!)")
        self._any = _pattern(self._tokens)
        self._special = _pattern(text for text, token in self._tokens.items() if token.special)
        self._marked = re.compile(rf"{self._nonce}(\d{{4}})|{self._any.pattern}")

    def may_hold(self, texts: Iterable[str]) -> bool:
        """Whether one of these texts holds so much as the first character of a control string."""
        return any(self._head.search(text) for text in texts)

    def hold(self, texts: Iterable[str]) -> bool:
        """Whether one of these texts holds a control string."""
        return any(self._any.search(text) for text in texts)

    def held(self, texts: Iterable[str]) -> list[str]:
        """The control strings in these texts, each once."""
        return sorted({match[0] for text in texts for match in self._any.finditer(text)})

    def exceeded(self, ids: Iterable[int], text: str) -> bool:
        """Whether a text was made more control tokens than it holds control strings.

        Some tokenizers find their tokens in the normalised text, or in their vocabulary.
        """
        made = sum(id in self._control_ids for id in ids)
        return made > sum(1 for _ in self._any.finditer(text))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(map(self._id_of, self._tokens)) - {self._tokenizer.unk_token_id}

    def mark_heads(self, text: str) -> str:
        """A text in which every character that could begin a control string is replaced by a mark."""
        return text.translate(self._marks)

    def mark(self, text: str, *, special: bool = False) -> str:
        """A text in which only control strings are broken by a mark, with `special` only those of special tokens."""
        pattern = self._special if special else self._any
        marked, count = pattern.subn(lambda match: self._marks[ord(match[0][0])] + match[0][1:], text)
        while count:  # two of them may overlap
            marked, count = pattern.subn(lambda match: self._marks[ord(match[0][0])] + match[0][1:], marked)
        return marked

    def read(self, marked: str) -> MarkedPrompt:
        """What was rendered from marked texts, without the marks."""
        pieces, controls = list[str](), list[Control]()
        done = length = 0
        for match in self._marked.finditer(marked):
            piece = marked[done : match.start()]
            what = self._heads[int(match[1])] if match[1] else match[0]
            length += len(piece)
            if not match[1]:
                controls.append(Control(length, length + len(what)))
            pieces += [piece, what]
            length += len(what)
            done = match.end()
        text = "".join(pieces) + marked[done:]
        own = {control.start for control in controls}
        forged = sum(match.start() not in own for match in self._any.finditer(text))
        return MarkedPrompt(text, tuple(controls), forged)

    def encode(self, text: str, controls: tuple[Control, ...] = ()) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the characters `start, stop` of each; only `controls` become control tokens.

        Where the tokenizer cannot say which token is which text, there are no characters.
        """
        if not self._tokenizer.is_fast:
            return self._encode_pieces(text, controls), []
        pieces, ends, shifts = list[str](), list[int](), [0]
        done = length = 0
        for control in controls:
            stand_in = self._stand_ins[text[control.start : control.stop]]
            pieces += [text[done : control.start], stand_in]
            length += control.start - done + len(stand_in)
            done = control.stop
            ends.append(length)
            shifts.append(done - length)
        encoded = self._plain.encode("".join(pieces) + text[done:], add_special_tokens=False)
        offsets = [
            (start + shifts[bisect_right(ends, start)], stop + shifts[bisect_right(ends, stop)])
            for start, stop in encoded.offsets
        ]
        return [self._ids.get(id, id) for id in encoded.ids], offsets

    def _encode_pieces(self, text: str, controls: tuple[Control, ...]) -> list[int]:
        ids, done = list[int](), 0
        for control in (*controls, Control(len(text), len(text))):
            if piece := text[done : control.start]:
                ids += self._tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if control.start < control.stop:
                ids.append(self._id_of(text[control.start : control.stop]))
            done = control.stop
        return ids

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer with the stand-ins in place of the control strings, which are then text like any other."""
        spec: dict[str, Any] = json.loads(self._tokenizer.backend_tokenizer.to_str())
        names = self._stand_ins
        for token in spec["added_tokens"]:
            if token["content"] in names:
                token |= {"content": names[token["content"]], "normalized": False}
        model = spec["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, Mapping):
            model["vocab"] = {names.get(text, text): id for text, id in vocabulary.items()}
        else:  # of a unigram model
            model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in names]
        return Tokenizer.from_str(json.dumps({**spec, "truncation": None, "padding": None, "post_processor": None}))

    @cached_property
    def _ids(self) -> dict[int, int]:
        """Ids that the stand-ins have, to those of what they stand for, where these differ."""
        pairs = [(self._plain.token_to_id(name), self._id_of(text)) for text, name in self._stand_ins.items()]
        return {given: id for given, id in pairs if given is not None and given != id}

    def _id_of(self, text: str) -> int:
        return int(cast(int, self._tokenizer.convert_tokens_to_ids(text)))


def _is_control(token: AddedToken, template: str) -> bool:
    text = str(token.content)
    if len(text) < 2 or token.single_word or all(char.isalnum() or char.isspace() for char in text):
        return False
    partner = (
        f"<{text[2:]}" if text.startswith("</") else f"</{text[1:]}"
    )  # <think> of a template that splits at </think>
    named = text in template or (text.startswith("<") and partner in template)
    return bool(token.special) or named or (text.startswith("<|") and text.endswith("|>"))


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of these texts that stands at a place; never matches where there are none."""
    return re.compile(_any_of(texts) or "(?!)")


def _any_of(texts: Iterable[str]) -> str:
    # By first characters: some tokenizers have thousands of special tokens, and alternatives are tried one by one.
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[:1], []).append(text[1:])
    ends = rests.pop("", None) is not None
    if not rests:
        return ""
    branches = "|".join(re.escape(head) + _any_of(rest) for head, rest in rests.items())
    return f"(?:{branches}){'?' if ends else ''}"


def _merged(merge: Any) -> str:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return f"{first}{second}"
