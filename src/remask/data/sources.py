"""Rows of training data from files and the hub, in the columns people have.

Every source becomes `Example`s: the conversation up to the answer, the answer, and where the row stands. A row that
cannot be used is an error naming file and line, or is counted and listed under `on_bad_row="skip"`. A column that is
not read is counted, and reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from remask.chat_template import Message
from remask.choices import OnBadRow
from remask.data.columns import answered, labels, refuse_labels
from remask.data.files import Unreadable, read_rows
from remask.data.named import Source
from remask.errors import UserError

E = TypeVar("E")


@dataclass(frozen=True)
class Example:
    """An example of fine-tuning. `messages` end with the turn to be answered; `completion` is the answer's text;
    `where` is for error messages.

    `further` are the answer's other keys (`tool_calls`, `reasoning_content`), `tools` what the chat template may offer.
    """

    messages: tuple[Message, ...]
    completion: str
    where: str
    further: Message = field(default_factory=dict)
    tools: Any = None

    @property
    def answer(self) -> Message:
        """Return the assistant's turn, with its further keys."""
        return {"role": "assistant", "content": self.completion, **self.further}


@dataclass
class Loaded(Generic[E]):
    """The usable examples, what was skipped, with the reason, and how many rows have each column that is not read."""

    examples: list[E]
    skipped: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def load_examples(source: str, *, on_bad_row: OnBadRow = "error", split: str = "train") -> Loaded[Example]:
    """Return the examples of a source (`load_rows`), one a row."""
    return load_rows(source, example, on_bad_row=on_bad_row, split=split, command="sft")


Read = Callable[[dict[str, Any], str], tuple[E, Iterable[str]]]
"""A function (row, where it stands) → (what it holds, the columns that were read)."""


def load_rows(source: str, read: Read[E], *, on_bad_row: OnBadRow, split: str, command: str) -> Loaded[E]:
    """Read a named data set, files, a folder in the hub's layout or a hub id, or a sample of one (`Source.parse`).

    Raises UserError naming the file and line at fault.
    """
    loaded = Loaded[E]([])
    parsed = Source.parse(source)
    for where, row in parsed.sample(read_rows(parsed.place, split=split, config=parsed.config), where=source):
        try:
            if isinstance(row, Unreadable):
                raise UserError(row.reason, where=where, mend="correct it there")
            if not isinstance(row, dict):
                raise UserError(
                    f"expected a mapping of columns, got a {type(row).__name__}",
                    where=where,
                    mend='write {"column": value, …}',
                )
            one, columns = read(row, where)
        except UserError as error:
            if on_bad_row == "error":
                raise
            loaded.skipped.append(str(error))
            continue
        loaded.examples.append(one)
        known = set(columns)
        loaded.unread.update(f"column {name}" for name in row if name not in known and _holds(row[name]))
    if not loaded.examples:
        first = f" ({loaded.skipped[0]})" if loaded.skipped else ""
        raise UserError(
            f"holds no usable rows{first}", where=source, mend=f"see the columns `remask {command} --help` lists"
        )
    return loaded


def _holds(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def example(row: dict[str, Any], where: str) -> tuple[Example, set[str]]:
    """Return the example in one row and the columns it was read from. Raises UserError naming what is missing
    or wrong.
    """
    read = answered(row, where)
    refuse_labels(row, where)
    if not read.answer["content"].strip() and not read.answer.keys() & {"tool_calls", "function_call"}:
        raise UserError("the answer is empty", where=where, mend="give it a text")
    further = {key: value for key, value in read.answer.items() if key not in ("role", "content")}
    found = Example(tuple(read.messages), read.answer["content"], where, further, read.tools)
    return found, read.columns | labels(row)
