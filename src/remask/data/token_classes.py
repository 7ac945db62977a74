"""What kind of token each token of an answer is: a number, an operator, a connective, part of the final answer, …

A token is classed by the unit of text it lies in (a word, a number, a sign), not by its own characters, so the classes
mean the same for a tokenizer of bytes as for one of words. Every token has exactly one lexical class (`LEXICAL`), that
of the first character in it which is not white space, and any number of positional ones (`POSITIONAL`). A tokenizer
that does not keep its text (WordPiece, which puts blanks around every sign) shows no tags and no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

LEXICAL: dict[str, str] = {
    "number": "digits, with the point or comma inside a number: 42, 3.5",
    "name": "letters and digits in one: a3, x_1, 4x",
    "operator": "+ − * / = < > and their like; not the hyphen of a word, a bullet or **bold**",
    "punctuation": "brackets, stops, quotes and all other signs",
    "connective": "a word that says how a step follows: because, so, therefore, then, but, if, wait, …",
    "function word": "articles, pronouns, prepositions, auxiliaries, and, or, not",
    "word": "all other words",
    "tag": "<answer>, </answer>, <reasoning> and the like",
    "space": "blanks and tabs alone, and what has no characters",
    "newline": "white space with a line break",
    "end": "special tokens of the answer, such as the one that closes a turn",
    "fill": "EOS after the answer, as far as the canvas goes",
}
"""The lexical classes and their meanings. They do not overlap and leave nothing out."""

POSITIONAL: dict[str, str] = {
    "answer": "the final answer: inside <answer>…</answer> or \\boxed{…}, or after ####",
    "step start": "the first token of a step: of a line, or of each equation in a line that is nothing but equations",
}
"""The positional classes and their meanings. A token of these has its lexical class too."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONNECTIVES = _words(
    """accordingly actually also alternatively although as because besides but consequently conversely finally first
    firstly furthermore hence hmm however if instead lastly meanwhile moreover namely nevertheless next now otherwise
    second secondly similarly since so still subsequently then therefore third thirdly though thus unless until wait
    when whereas while yet"""
)
FUNCTION_WORDS = _words(
    """a about above after again all am an and any are at be been before being below between both by can could did do
    does done down during each either every few for from had has have having he her here hers him his how i in into is
    it its let may me might more most must my neither no nor not of off on once only or other our out over own per same
    shall she should some such than that the their them there these they this those through to too under up upon us was
    we were what where whether which who whom whose why will with within without would you your"""
)

SPECIAL = "\0"
"""The character that stands in the text for a special token: it is part of no word."""

UNIT = re.compile(
    r"""(?P<tag></?[^\W\d]\w*>)
    |(?P<number>\d+(?:[.,]\d+)*(?!\w))
    |(?P<word>\w+(?:['’]\w+)*)
    |(?P<space>\s)
    |(?P<punctuation>(?<=[^\W\d_])-(?=[^\W\d_])|^[-*](?=[ ])|(?<![\w)])\*\*|\*\*(?![\w(]))
    |(?P<operator>[-+*/=<>^×÷·−±≤≥≠≈→⇒√∑])
    |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
ANSWER = re.compile(
    r"<answer>(.*?)(?:</answer>|\Z)|\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}|^####([^\n]*)", re.DOTALL | re.MULTILINE
)
LINE = re.compile(r"[^\n]+")
PIECE = re.compile(r"\S+")
CHARACTER_BYTES = 4
"""The most tokens that one character is split into."""


def classes_of(tokenizer: Any, answer: Sequence[int], *, fill: int = 0) -> list[tuple[str, ...]]:
    """Return the classes of each token of an answer and of the `fill` EOS tokens after it, the lexical one first."""
    return [*classify(*spelled(tokenizer, answer)), *([("fill",)] * fill)]


def spelled(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text that ids stand for, and of each token where in it its characters are: [start, end).

    Tokens that only together make a character share its place. A special token is one character, `SPECIAL`.
    """
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    text, before, waiting = "", list[int](), list[int]()
    spans: list[tuple[int, int]] = []

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)) if tokens else ""

    def take(piece: str, tokens: list[int]) -> None:
        nonlocal text
        spans.extend([(len(text), len(text) + len(piece))] * len(tokens))
        text += piece

    for place, token in enumerate(ids):
        if token in special:
            take(SPECIAL, [token])
            before = []
            continue
        waiting.append(token)
        # Read after what stands before it: by itself a token may lose its blank, or gain one.
        piece = decode(before + waiting)[len(decode(before)) :]
        last = place + 1 == len(ids) or ids[place + 1] in special
        if last or not piece.endswith("\N{REPLACEMENT CHARACTER}") or len(waiting) == CHARACTER_BYTES:
            take(piece, waiting)
            before, waiting = waiting, []
    return text, spans


def classify(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, ...]]:
    """Return the classes of tokens that stand at these places of a text, the lexical one first."""
    kinds = [kind for unit in UNIT.finditer(text) for kind in [_kind(unit)] * len(unit[0])]
    answer = {i for found in ANSWER.finditer(text) for i in range(*found.span(found.lastindex or 0))}
    steps = set(_steps(text, kinds, answer))
    found: list[tuple[str, ...]] = []
    for start, end in spans:
        seen = next((i for i in range(start, end) if not text[i].isspace()), None)
        if seen is None:
            found.append(("newline" if "\n" in text[start:end] else "space",))
            continue
        positions = [name for name, where in (("answer", answer), ("step start", steps)) if seen in where]
        steps.discard(seen)  # tokens that share a character: the first of them begins the step
        found.append((kinds[seen], *positions))
    return found


def _kind(unit: re.Match[str]) -> str:
    """The lexical class of a unit."""
    kind, text = str(unit.lastgroup), unit[0]
    if text == SPECIAL:
        return "end"
    if kind == "sign":
        return "punctuation"
    if kind != "word":
        return kind
    if any(character.isdigit() or character == "_" for character in text):
        return "name"
    plain = text.lower().replace("’", "'").removesuffix("n't").partition("'")[0]
    return "connective" if plain in CONNECTIVES else "function word" if plain in FUNCTION_WORDS else "word"


def _steps(text: str, kinds: Sequence[str], answer: set[int]) -> Iterator[int]:
    """Where a step begins: at a line's first character, or, in a line of which every piece between blanks holds an
    equals sign (`a1=3 b2=4`), at each piece's. Tags, special tokens and what is inside the answer begin none.
    """
    for line in LINE.finditer(text):
        pieces = [line.start() + piece.start() for piece in PIECE.finditer(line[0])]
        equations = all("=" in piece for piece in line[0].split())
        for start in pieces if equations else pieces[:1]:
            if start not in answer and kinds[start] not in ("tag", "end") and not text.startswith("####", start):
                yield start
