"""Where the code stands in an answer: one set of rules for HumanEval, MBPP, their plus versions and RL's rewards.

`extract` looks in these places, in this order, and takes the first that holds a program which binds the function asked
for: the whole answer, where it is code and nothing else; what stands in tags that frame an answer; the answer without
its reasoning; all of it. In a place, fenced blocks go before bare text, and of several pieces of code the one counts
that binds the name best (a definition before an import, an import before a stub), the last of equals. What a piece
needs and another piece of the same place defines is put before it; examples and a main part behind the function are
left out.

The reports behind the rules are named beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remask.tasks.code_continuation import is_inside, returning, to_margin
from remask.tasks.python_code import (
    KINDS,
    Code,
    dedented,
    joined,
    parse,
    parsed,
    seems_to_bind,
)

ENDS = re.compile(r"<\|(?:endoftext|eot_id|im_end|end|end_of_text|eom_id)\|>")

REASONING = re.compile(r"^[ \t]*<(think|thinking|reasoning|thought)>.*?(?:</\1>|\Z)", re.DOTALL | re.MULTILINE)
"""The tags of reasoning, which may hold drafts that are not the answer. Only a tag that begins a line opens it: code
may name one."""
REASONED = re.compile(r"</(?:think|thinking|reasoning|thought)>")
"""The end tag alone, where the prompt has opened the reasoning."""

FRAMES = re.compile(
    r"<(?P<tag>answer|code|python|solution)>(?P<a>.*?)(?:</(?P=tag)>|\Z)"
    r"|\[(?P<word>BEGIN|PYTHON|ANSWER|CODE)\](?P<b>.*?)(?:\[(?:DONE|END|/(?P=word))\]|\Z)",
    re.DOTALL,
)
"""The frames of an answer: tags, as Remask's and d1's prompts ask for, and MBPP's `[BEGIN]` … `[DONE]`, which
opencompass #1407 is about. One left open runs to the end."""
FRAME_END = re.compile(r"</(?:answer|code|python|solution)>|\[DONE\]|\[/PYTHON\]")
"""The end of a frame that the prompt has opened."""

MARK = re.compile(r"`{3,}|^[ \t]*~{3,}", re.MULTILINE)
INFO = re.compile(r"[ \t]*(?:python ?\d*|py\d?)?[ \t]*(?=(?:async )?def |class |from |import |@|\w+ = )", re.IGNORECASE)
"""The text that may stand between a fence and code on its line."""
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

WIDE = re.compile(r"^[ \u00a0]*\u00a0[ \u00a0]*", re.MULTILINE)
"""The indentation with no-break spaces that text copied from a page has."""
TRIED = 16
"""The number of fences behind an opening one that are tried as its end."""
MOST_PIECES = 100
"""The most blocks of one answer that are read."""

SAID = re.compile(
    r"^[^\n'\"#=(]{0,80}?:[*_]*[ \t]+(?=(?:async )?def \w|class \w|from \w|import \w|@\w|\w+ = lambda\b)", re.MULTILINE
)
"""The words before code on its line, as in `Answer: def add(x, y):`."""
QUOTED = re.compile(r"^[ \t]*>(?!>)(?: |$)", re.MULTILINE)
TYPED = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)
GOES_ON = re.compile(r"[\s)\]}]|(?:else|elif|except|finally)\b")
"""The beginning of a line that belongs to the statement before it."""
PLAINLY = re.compile(r"([ \t]*)(?:(?:async )?def \w|class \w|import \w|from [\w.]+ import |@\w)")
UNFINISHED = ("never closed", "unterminated triple", "expected an indented block")


@dataclass(frozen=True)
class Block:
    """A fenced block has its code, and its fences' lines; the last is None where it is open."""

    code: str
    opening: str
    closing: str | None


def extract(completion: str, name: str, *others: str) -> str | None:
    """Return the code of a completion that is to bind `name`, and perhaps `others`; None where there is nothing.

    The text ends at the first end-of-text token. Where nothing in it binds the name, what could be the inside of the
    function is returned (HumanEval's continuations), else whatever there is.
    """
    text = until_end(completion).replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    text = WIDE.sub(lambda blanks: " " * len(blanks[0]), text)
    if not text.strip():
        return None
    whole = Code.read(text)
    if whole is not None and whole.kind(name) == "written":
        return whole.without_demonstration([name, *others])
    regions = list(_regions(text))
    for region in regions:
        if code := _program(region, [name, *others]):
            return code
    for region in regions:
        if code := _inside(region):
            return code
    return None


def until_end(completion: str) -> str:
    """Return the text up to its first end-of-text token."""
    return ENDS.split(completion, maxsplit=1)[0]


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text: ``` or ~~~, with or without a language, indented, left open to the end.

    A block ends at the first fence where what stands in it is Python, so that a fence in a docstring or another string
    does not end it (smolagents #1219, langflow PR #14371); where no fence makes it so, at the first bare one.
    """
    marks = list(MARK.finditer(text))
    found: list[Block] = []
    number = 0
    while number < len(marks):
        block, number = _block(text, marks, number, thorough=len(found) < 4 * TRIED)
        found.append(block)
    return found


def _block(text: str, marks: Sequence[re.Match[str]], opener: int, *, thorough: bool) -> tuple[Block, int]:
    """The block that a fence opens, and the number of the next fence behind it."""
    begin = marks[opener].end()
    info = INFO.match(text, begin)
    line_end = text.find("\n", begin)
    start = info.end() if info else line_end + 1 if line_end >= 0 else len(text)
    after = range(opener + 1, len(marks))
    tried: list[int | None] = [number for number in after[:TRIED] if marks[number].start() >= start]
    if len(after) <= TRIED:
        tried.append(None)  # to the end of the text
    number = next((n for n in tried if thorough and _is_code(text[start : _end(text, marks, n)])), -1)
    if number == -1:
        kind = marks[opener][0].strip()[0]
        bare = (n for n in after[:TRIED] if _line(text, marks[n]).strip(kind) == "")
        number = next(bare, next(iter(after), None))
    closing = None if number is None else _line(text, marks[number])
    end = max(start, _end(text, marks, number))
    return Block(text[start:end], _line(text, marks[opener]), closing), len(marks) if number is None else number + 1


def _end(text: str, marks: Sequence[re.Match[str]], number: int | None) -> int:
    return len(text) if number is None else marks[number].start()


def _is_code(text: str) -> bool:
    return bool(text.strip()) and Code.read(text) is not None


def _line(text: str, mark: re.Match[str]) -> str:
    """The line a fence stands on, from the fence on."""
    end = text.find("\n", mark.end())
    return text[mark.start() : len(text) if end < 0 else end].strip()


def _regions(text: str) -> Iterator[str]:
    """The places to look in, the likeliest first."""
    answer = REASONING.sub("", text)
    if reasoned := [end.end() for end in REASONED.finditer(answer)]:
        answer = answer[reasoned[-1] :]
    framed = [found["a"] or found["b"] or "" for found in FRAMES.finditer(answer)]
    yield from reversed(framed)
    if not framed and (end := FRAME_END.search(answer)):
        yield answer[: end.start()]
    yield answer
    if answer != text:
        yield text


def _program(region: str, names: Sequence[str]) -> str | None:
    """The region's best piece of code that binds the first name; None where none does."""
    fenced = blocks(region)
    pieces = [block.code for block in fenced]
    before = _before(region, fenced)
    for places in ([] if before is None else [before], pieces, [region], INLINE.findall(region)):
        if code := _best(places, names):
            return code
    return _seeming(pieces or [region], names[0])


def _before(region: str, fenced: Sequence[Block]) -> str | None:
    """What stands before a bare fence, where that is code: the prompt had opened the block that this fence closes."""
    if not fenced or fenced[0].opening not in ("```", "~~~"):
        return None
    return MARK.split(region, maxsplit=1)[0]


def _best(pieces: Sequence[str], names: Sequence[str]) -> str | None:
    """The piece that binds the first name best, the last of equals, with what it needs of the others."""
    named = [(number, piece) for number, piece in enumerate(pieces) if names[0] in piece][-MOST_PIECES:]
    read = [(number, code) for number, piece in named if (code := _code_of(piece, names[0])) is not None]
    ranked = [(KINDS.index(code.kind(names[0])), number, code) for number, code in read]
    rank, chosen, code = max(ranked, key=lambda one: one[:2], default=(0, 0, None))
    if code is None or rank == 0:
        return None
    helpers = []
    if code.missing() and len(pieces) > 1:
        others = [piece for number, piece in enumerate(pieces[:MOST_PIECES]) if number != chosen]
        helpers = _helpers(code, [other for piece in others if (other := _code_of(piece, names[0])) is not None])
    return joined(*helpers, code.without_demonstration(names))


def _helpers(code: Code, others: Sequence[Code]) -> list[str]:
    """The statements of other pieces that bind what a program uses and does not bind, and what these use in turn."""
    statements = [(other, one) for other in others if not other.is_body for one in other.statements]
    missing, had = code.missing(), set(code.binds)
    taken: set[int] = set()
    while wanted := [n for n, (_, one) in enumerate(statements) if n not in taken and one.binds & (missing - had)]:
        taken.update(wanted)
        had = had.union(*(statements[number][1].binds for number in wanted))
        missing = missing.union(*(statements[number][1].uses for number in wanted))
    return [statements[number][0].source_of(statements[number][1]) for number in sorted(taken)]


def _code_of(piece: str, name: str) -> Code | None:
    """A piece as code: the first of its readings that binds the name, else the first that is Python."""
    first = None
    for code in _readings(piece):
        if code is not None and code.kind(name) != "none":
            return code
        first = first or code
    return first


def _readings(piece: str) -> Iterator[Code | None]:
    """As it stands; the statements in it without the words around them (evalplus #92); what is quoted in it, or typed
    at Python's prompt."""
    yield Code.read(piece)
    yield _among_words(SAID.sub("", piece))
    for mark in (QUOTED, TYPED):
        if mark.search(piece):
            yield Code.read("\n".join(mark.sub("", line) for line in piece.split("\n") if mark.match(line)))


def _among_words(text: str) -> Code | None:
    """The statements that stand in a text, none of its words."""
    lines = _from_margin(text)
    starts = [number for number, line in enumerate(lines) if line and not GOES_ON.match(line)] + [len(lines)]
    left = 50_000 + 8 * len(text)
    statements: list[str] = []
    place = 0
    while place < len(starts) - 1 and left > 0:
        end = None
        for behind in range(place + 1, len(starts)):
            piece = "\n".join(lines[starts[place] : starts[behind]])
            left -= len(piece)
            tree, wrong = parsed(piece)
            if tree is not None:
                end = behind
                statements.append(piece)
            if tree is not None or left < 0 or not (piece[0] == "@" or any(words in wrong for words in UNFINISHED)):
                break
        place = end or place + 1
    code = "\n".join(statements)
    tree = parse(code)
    return Code(code, tree) if tree is not None and tree.body else None


def _from_margin(text: str) -> list[str]:
    """The lines, counted from the margin of the first that is plainly code; words may stand left of it."""
    lines = text.split("\n")
    margin = next((found[1] for line in lines if (found := PLAINLY.match(line))), "")
    return [line.removeprefix(margin) for line in lines]


def _seeming(pieces: Sequence[str], name: str) -> str | None:
    """The last piece that seems to bind the name, without being Python."""
    found = next((piece for piece in reversed(pieces) if seems_to_bind(piece, name)), None)
    return None if found is None else dedented(found.strip("\n"))


# ---- the inside of a function -----------------------------------------------------------------------------------


def _inside(region: str) -> str | None:
    """What could be the inside of a function, where a region binds nothing: an indented text before the first fence, a
    block of statements that return, the first block, or the text."""
    fenced = blocks(region)
    before = MARK.split(region, maxsplit=1)[0]
    if not fenced or (before.lstrip("\n")[:1].isspace() and is_inside(to_margin(before))):
        code = returning(before)
    else:
        code = next((block.code for block in fenced if is_inside(block.code)), fenced[0].code)
    return code.strip("\n") if code.strip() else None
