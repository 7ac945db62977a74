"""A checkpoint's chat template: how a conversation becomes text and tokens, and which token closes a turn.

A control token is one that steers a model: a special token, or an added one that the template itself writes. Where the
text of a message spells a control token, it stays text: it is tokenised as the characters it is made of, so that no
message can end a turn or open another one. While a template is rendered, such spellings are replaced by marks (two
characters that Unicode reserves for a program's own use, with a number between them); a text that may hold marks is
called marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from remask.errors import UserError, first_line

Message = dict[str, Any]
"""A message is one turn: role, content (text), and what else the chat template may read (`tool_calls`,
`reasoning_content`, …)."""

MARK = re.compile("\ufdd0(\\d+)\ufdd1")
DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
THOUGHT_TAGS = ("<think>", "</think>")
"""The added tokens that answers are meant to spell; templates write them too."""
ANCHORS = ("\n", "0")
"""The texts after which a tokenizer reads what follows as the inside of a text."""
ANSWER, QUESTION = "remask-answer", "remask-question"
"""The placeholders for the text of a turn where only the text that the template adds is read."""


_DATE: ContextVar[datetime | None] = ContextVar("date", default=None)


def today() -> datetime:
    """Return the time that templates are given where they write a date: now, or the one that `on_date` holds still."""
    return _DATE.get() or datetime.now()


@contextmanager
def on_date(date: datetime) -> Iterator[None]:
    """Make templates that write a date (Llama 3's do) write this one, so that a run's rows are the same on
    another day.
    """
    token = _DATE.set(date)
    try:
        yield
    finally:
        _DATE.reset(token)


@dataclass(frozen=True)
class Template:
    """A template says how a tokenizer writes conversations. It is made by `template_of`."""

    tokenizer: Any
    control: tuple[str, ...]
    """The control tokens, as they are spelled."""
    before: tuple[int, ...]
    """The ids that the tokenizer puts before a text that no template has rendered (BOS)."""
    after: tuple[int, ...]
    """The ids that stand between a prompt and its answer there: an encoder's separator; an EOS is none."""
    closing: str | None = None
    """The token with which the chat template closes an assistant's turn, as it is spelled."""
    end: int | None = None
    """The token an answer ends with: the closing one, else EOS, else an encoder's separator."""
    starts_anew: bool = False
    """True where what follows a control token is read as a text's beginning: Llama 2's tokenizer puts a space there."""
    spelling: Any = field(default=None, repr=False)
    """A compiled pattern of the control tokens."""

    @property
    def is_chat(self) -> bool:
        """Return whether the tokenizer has a chat template."""
        return self.tokenizer.chat_template is not None

    def marked(self, value: Any) -> Any:
        """Return a text, or a structure of lists and mappings with texts in it, in which marks stand for the spellings
        of control tokens.
        """
        if isinstance(value, str):
            return self.spelling.sub(lambda match: f"\ufdd0{self.control.index(match[0])}\ufdd1", value)
        if isinstance(value, dict):
            return {key: self.marked(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(part) for part in value]
        return value

    def spelled(self, text: str) -> str:
        """Return a marked text with the spellings back in their places."""
        return MARK.sub(lambda match: self.control[int(match[1])], text)

    def render(self, messages: Sequence[Message], *, opened: bool, tools: Any = None, where: str | None = None) -> str:
        """Return the conversation as the template writes it, marked; `opened` ends it with the assistant's header.

        Raises UserError where the template refuses the conversation or is broken.
        """
        try:
            return self.tokenizer.apply_chat_template(
                self.marked(list(messages)),
                tools=self.marked(tools),
                tokenize=False,
                add_generation_prompt=opened,
                chat_template=self._on_date(tools),
            )
        except Exception as error:  # a template is a program that comes with the checkpoint
            raise UserError(
                f"the chat template refuses this conversation ({first_line(error)})",
                where=where,
                mend="change these turns, or the chat template of the model",
            ) from error

    def _on_date(self, tools: Any) -> str | None:
        """The template with the date of `today` written into it; None where it writes no date, and stays as it is."""
        if "strftime_now" not in str(self.tokenizer.chat_template):
            return None
        source: str = self.tokenizer.get_chat_template(None, tools)
        return DATE_CALL.sub(lambda match: repr(today().strftime(match[2])), source)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a marked text, without those that a tokenizer adds around one."""
        if not MARK.search(text):
            return self.tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for piece in re.split(f"({self.spelling.pattern})", text):
            if piece in self.control:
                ids.append(_id(self.tokenizer, piece))
            elif piece:
                ids += self._plain(piece, inside=bool(ids) and not self.starts_anew)
        return ids

    def _plain(self, piece: str, *, inside: bool) -> list[int]:
        """The ids of a marked text whose spellings are all meant as text. `inside`: something stands before it."""
        text = self.spelled(piece)
        ids = self._inside(text, split_special_tokens=True) if inside else self._encode(text, split_special_tokens=True)
        steering = {_id(self.tokenizer, token) for token in self.control}
        if not steering.intersection(ids):
            return ids
        # An added token that is not special is found in any text; broken after its first character it is not.
        ids = []
        broken = MARK.sub(
            lambda match: f"{self.control[int(match[1])][0]}\ufdd2{self.control[int(match[1])][1:]}", piece
        )
        for number, part in enumerate(broken.split("\ufdd2")):
            ids += self._inside(part) if inside or number else self._encode(part)
        return ids

    def _encode(self, text: str, **how: Any) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, **how)

    def _inside(self, text: str, **how: Any) -> list[int]:
        """The ids of a text that follows another: some tokenizers put a space before a text's first word."""
        for anchor in ANCHORS:
            start, ids = self._encode(anchor, **how), self._encode(anchor + text, **how)
            if ids[: len(start)] == start:
                return ids[len(start) :]
        return self._encode(text, **how)

    def following(self, text: str) -> list[int]:
        """Return the ids of a text, not marked, that stands after a separate token: none of it steers."""
        return self._plain(self.marked(text), inside=not self.starts_anew) if text else []

    def continuing(self, head: str, tail: str) -> list[int]:
        """Return the ids of `tail` where it follows `head`, both marked: those of the joint text where no token
        straddles the seam. Raises UserError where no tokens of `tail` alone read as the joint text does.
        """
        first, joint = self.ids(head), self.ids(head + tail)
        if joint[: len(first)] == first:
            return joint[len(first) :]
        whole = self._decoded(joint)
        for anchor in (self.control[0] if self.control else "", self.spelled(head[-1:]), *ANCHORS, ""):
            start, rest = self.ids(anchor), self.ids(anchor + tail)
            if rest[: len(start)] == start and self._decoded(first + rest[len(start) :]) == whole:
                return rest[len(start) :]
        raise UserError(
            "the tokenizer reads the answer otherwise after its prompt than alone",
            mend="end the prompt and begin the answer at a word's border",
        )

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return how this tokenizer writes conversations; read once as long as tokenizer and template stay as they are."""
    return _template_of(tokenizer, len(tokenizer), str(tokenizer.chat_template))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token with which the chat template closes an assistant's turn; None where there is none."""
    closing = template_of(tokenizer).closing
    return None if closing is None else _id(tokenizer, closing)


def check_text(text: str, name: str, where: str | None) -> None:
    """Raises UserError for text that cannot be written as UTF-8 (half of a surrogate pair), and for the characters
    that marks are made of.
    """
    if found := re.search("[\ufdd0-\ufdd2]", text):
        raise UserError(
            f"{name} holds {found[0]!r}, which Unicode reserves and no text has", where=where, mend="take it out"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} holds half of a character ({text[error.start]!r}, a lone surrogate) at place {error.start + 1}",
            where=where,
            mend="write the file as UTF-8 anew from its source",
        ) from None


@lru_cache(maxsize=8)
def _template_of(tokenizer: Any, size: int, source: str) -> Template:
    added = tokenizer.added_tokens_decoder
    special = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    before, after = _around(tokenizer)
    bare = _with_control(Template(tokenizer, (), before, after), special)
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if tokenizer.chat_template is None:
        return _with_control(bare, special, end=eos)
    own = _own_text(bare)
    turns = [token.content for token in added.values() if token.content in own and token.content not in THOUGHT_TAGS]
    template = _with_control(bare, special | set(turns))
    closing = _closing(template, {token.content for token in added.values()} | special)
    return _with_control(
        template, template.control, closing=closing, end=eos if closing is None else _id(tokenizer, closing)
    )


def _with_control(template: Template, control: Sequence[str] | set[str], **changes: Any) -> Template:
    spelled = tuple(sorted((token for token in control if token), key=lambda token: (-len(token), token)))
    pattern = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
    made = replace(template, control=spelled, spelling=pattern, **changes)
    if spelled:
        following = made._encode(spelled[0] + "x")[1:]
        made = replace(made, starts_anew=following == made._encode("x") != made._inside("x"))
    return made


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text. An EOS after it would end the prompt before its answer."""
    inner = tokenizer.encode("x", add_special_tokens=False)
    outer = tokenizer.encode("x", add_special_tokens=True)
    for start in range(len(outer) - len(inner) + 1):
        if outer[start : start + len(inner)] == inner:
            after = [
                i for i in outer[start + len(inner) :] if i != tokenizer.eos_token_id or i == tokenizer.sep_token_id
            ]
            return tuple(outer[:start]), tuple(after)
    return (), ()


def _conversation(*texts: str) -> list[Message]:
    return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]


def _own_text(template: Template) -> str:
    """What the template itself writes around a question and its answer; nothing where it refuses them."""
    try:
        return template.render(_conversation(QUESTION, ANSWER), opened=True)
    except UserError:  # the rows at hand will show why
        return ""


def _id(tokenizer: Any, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token)


def _closing(template: Template, tokens: set[str]) -> str | None:
    """The first token after an answer that stands there whether the conversation goes on or not."""
    try:
        last = template.render(_conversation(QUESTION, ANSWER), opened=False)
    except UserError:
        return None
    try:
        further = template.render(_conversation(QUESTION, ANSWER, QUESTION), opened=False)
    except UserError:  # a template for one question
        further = last
    if ANSWER not in last or ANSWER not in further:
        return None
    ends = [text[text.index(ANSWER) + len(ANSWER) :] for text in (last, further)]
    rest = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False)))
    found = re.search("|".join(map(re.escape, sorted(filter(None, tokens), key=len, reverse=True))) or r"(?!)", rest)
    return None if found is None else found[0]
