"""Rows of training data from files and the hub, in the columns people have.

Every source becomes `Example`s: the conversation up to the answer, the answer, and where the row stands. A row that
cannot be used is an error naming file and line, or is counted and listed under `on_bad_row="skip"`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from remask.config import OnBadRow
from remask.data.files import Unreadable, read_rows
from remask.data.named import Source
from remask.errors import UserError

Message = dict[str, str]
E = TypeVar("E")


@dataclass(frozen=True)
class Example:
    """`messages` end with the turn to be answered; `completion` is the answer; `where` is for error messages."""

    messages: tuple[Message, ...]
    completion: str
    where: str


@dataclass
class Loaded(Generic[E]):
    """The usable examples and what was skipped, with the reason."""

    examples: list[E]
    skipped: list[str] = field(default_factory=list)


def load_examples(source: str, *, on_bad_row: OnBadRow = "error", split: str = "train") -> Loaded[Example]:
    """The examples of a source (`load_rows`), one a row."""
    return load_rows(source, example, on_bad_row=on_bad_row, split=split, command="sft")


def load_rows(
    source: str, read: Callable[[Any, str], E], *, on_bad_row: OnBadRow, split: str, command: str
) -> Loaded[E]:
    """Read a named data set, a file, a folder in the hub's layout or a hub id, or a sample of one (`Source.parse`).

    `read` is given a row and where it stands. Raises UserError naming the file and line at fault.
    """
    loaded = Loaded[E]([])
    parsed = Source.parse(source)
    for where, row in parsed.sample(read_rows(parsed.place, split=split, config=parsed.config), where=source):
        try:
            if isinstance(row, Unreadable):
                raise UserError(row.reason, where=where)
            loaded.examples.append(read(row, where))
        except UserError as error:
            if on_bad_row == "error":
                raise
            loaded.skipped.append(str(error))
    if not loaded.examples:
        raise UserError("holds no usable rows", where=source, mend=f"see the columns `remask {command} --help` lists")
    return loaded


def example(row: Any, where: str) -> Example:
    """The example in one row, by the columns it has. Raises UserError naming what is missing."""
    if not isinstance(row, dict):
        raise UserError(f"a row is a mapping of columns, this is a {type(row).__name__}", where=where)
    for columns, read in READERS:
        if all(row.get(column) is not None for column in columns):
            messages, completion = read(row, where)
            break
    else:
        raise UserError(
            f"no columns Remask knows among {', '.join(map(str, row)) or 'none'}",
            where=where,
            mend="give prompt + completion, messages, question + answer, problem + solution, or s1K's columns",
        )
    if not completion.strip():
        raise UserError("the response is empty", where=where)
    if not messages:
        raise UserError("there is no prompt", where=where)
    return Example(tuple(messages), completion, where)


Read = Callable[[dict[str, Any], str], tuple[list[Message], str]]


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} is a {type(value).__name__}, not text", where=where)
    return value


def conversation(value: Any, name: str, where: str) -> list[Message]:
    """A column of text (the user's turn) or of messages. Raises UserError for anything else."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UserError(f"{name} is neither text nor a list of messages", where=where)
    turns = []
    for turn in value:
        role, content = turn.get("role"), turn.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UserError(f"{name} holds a message without a known role and text: {turn!r}", where=where)
        turns.append({"role": role, "content": content})
    return turns


def _messages(row: dict[str, Any], where: str) -> tuple[list[Message], str]:
    """The last assistant turn is the answer; all before it is the prompt."""
    turns = conversation(row["messages"], "messages", where)
    if not turns or turns[-1]["role"] != "assistant":
        raise UserError("messages do not end with an assistant's turn: there is no response", where=where)
    return turns[:-1], turns[-1]["content"]


def _prompt_completion(row: dict[str, Any], where: str) -> tuple[list[Message], str]:
    completion = row["completion"]
    if isinstance(completion, list):
        turns = conversation(completion, "completion", where)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise UserError("completion is not one assistant's turn", where=where)
        completion = turns[0]["content"]
    return conversation(row["prompt"], "prompt", where), _text(completion, "completion", where)


def _question_answer(row: dict[str, Any], where: str) -> tuple[list[Message], str]:
    question = _text(row["question"], "question", where)
    return [{"role": "user", "content": question}], _text(row["answer"], "answer", where)


def _problem_solution(row: dict[str, Any], where: str) -> tuple[list[Message], str]:
    problem = _text(row["problem"], "problem", where)
    return [{"role": "user", "content": problem}], _text(row["solution"], "solution", where)


def _s1k(thinking: str, attempt: str) -> Read:
    def read(row: dict[str, Any], where: str) -> tuple[list[Message], str]:
        thought = row[thinking]
        if isinstance(thought, list):  # s1K stores a list of one
            thought = "\n".join(_text(part, thinking, where) for part in thought)
        reasoning, answer = _text(thought, thinking, where), _text(row[attempt], attempt, where)
        question = _text(row["question"], "question", where)
        completion = f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"
        return [{"role": "user", "content": question}], completion

    return read


READERS: list[tuple[tuple[str, ...], Read]] = [
    (("messages",), _messages),
    (("prompt", "completion"), _prompt_completion),
    (
        ("question", "deepseek_thinking_trajectory", "deepseek_attempt"),
        _s1k("deepseek_thinking_trajectory", "deepseek_attempt"),
    ),
    (
        ("question", "gemini_thinking_trajectory", "gemini_attempt"),
        _s1k("gemini_thinking_trajectory", "gemini_attempt"),
    ),
    (("question", "thinking_trajectories", "attempt"), _s1k("thinking_trajectories", "attempt")),
    (("question", "answer"), _question_answer),
    (("problem", "solution"), _problem_solution),
]
"""The columns a row may have, first match first."""
