"""Gaps that take tokens of one kind only: `{{digits:3}}` in a template stands for three tokens of digits.

Shapes: C places of a canvas, G kinds, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remask.errors import UserError

KINDS: dict[str, str] = {
    "any": r"[\s\S]*",
    "digits": r"[0-9]+",
    "letters": r"[^\W\d_]+",
    "word": r"[\w\-]+",
    "space": r"\s+",
    "line": r"[^\n\r]+",
}
"""Kinds of gaps, and the pattern that a token's whole text must have. `any` takes all that do not end a text."""
GAP = re.compile(r"\{\{\s*(?P<kind>\w+)\s*:\s*(?P<count>\d+)\s*\}\}")
MOST = 4096


@dataclass(frozen=True)
class Gap:
    """A gap is so many tokens of one kind."""

    kind: str
    count: int


@dataclass(frozen=True)
class Allowed:
    """Allowed tokens: kind [C] of each place (−1: all), and for each kind which tokens it takes, tokens [G, V]."""

    kind: Int[Tensor, "C"]
    tokens: Bool[Tensor, "G V"]


def parts_of(template: str) -> list[str | Gap]:
    """Return the texts and gaps that a template is made of. Raises UserError for a kind that there is not, a gap of no
    tokens, and a template without gaps.
    """
    parts: list[str | Gap] = []
    end = 0
    for found in GAP.finditer(template):
        kind, count = found["kind"], int(found["count"])
        if kind not in KINDS:
            raise UserError(f"template has a gap of {kind}", mend=f"the kinds of gaps are {', '.join(KINDS)}")
        if not 1 <= count <= MOST:
            raise UserError(f"template has a gap of {count} tokens", mend=f"give 1 to {MOST}")
        parts += [template[end : found.start()], Gap(kind, count)]
        end = found.end()
    if not parts:
        raise UserError("template has no gap", mend="write {{digits:3}} for three tokens of digits")
    return [*parts, template[end:]]


_KNOWN: WeakKeyDictionary[Any, dict[tuple[str, int], Tensor]] = WeakKeyDictionary()


def tokens_of_kind(tokenizer: Any, kind: str, vocabulary: int) -> Bool[Tensor, "V"]:
    """Return which tokens a gap of this kind takes: those whose text is of it, and no special ones."""
    known = _KNOWN.setdefault(tokenizer, {})
    if (kind, vocabulary) not in known:
        pattern, special = re.compile(KINDS[kind]), set(tokenizer.all_special_ids)
        texts = tokenizer.batch_decode([[token] for token in range(min(vocabulary, len(tokenizer)))])
        found = torch.zeros(vocabulary, dtype=torch.bool)
        for token, text in enumerate(texts):
            found[token] = token not in special and pattern.fullmatch(text) is not None
        if not found.any():
            raise UserError(f"template has a gap of {kind}, and no token of this model is of that kind", mend="use any")
        known[kind, vocabulary] = found
    return known[kind, vocabulary]


def allowed(tokenizer: Any, kinds: Sequence[str], vocabulary: int) -> Allowed | None:
    """Return what each place takes, by the name of its kind; None where all take everything."""
    named = sorted(set(kinds) - {"", "any"})
    if not named:
        return None
    kind = torch.tensor([named.index(name) if name in named else -1 for name in kinds])
    return Allowed(kind, torch.stack([tokens_of_kind(tokenizer, name, vocabulary) for name in named]))
