"""The columns that rows have, in the layouts people publish: where the prompt stands, and where the answer.

| layout | who writes it |
|---|---|
| `messages`, or `conversations` with `from` and `value` | OpenAI's and TRL's chats, ShareGPT |
| `prompt` + `completion` or `response` | TRL, many others |
| `instruction` (+ `input`, `history`) + `output` | Alpaca, LLaMA-Factory |
| `instruction` (+ `context`) + `response` | Dolly |
| `question`, `query` or `problem` + `answer`, `response` or `solution` | GSM8K, MetaMath, MATH |
| `question` + thoughts + attempt | s1K |

`system` (or `system_prompt`) becomes the first turn and `tools` are given to the chat template, in every layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from remask.chat_template import Message
from remask.data.turns import conversation, is_conversation, text_of
from remask.errors import UserError
from remask.files import from_json

CHATS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
"""The columns that hold what is asked, first match first."""
ANSWERS = {
    "prompt": ("completion", "response", "output", "answer"),
    "instruction": ("output", "response", "completion", "answer"),
    "question": ("answer", "response", "output", "solution", "completion"),
    "query": ("response", "answer", "output", "completion"),
    "problem": ("solution", "answer", "response", "output", "completion"),
    "input": ("output", "response", "completion", "answer"),
}
"""The columns that hold the answer to each of them, first match first."""
FURTHER = {
    "instruction": ("input", "context"),
    "question": ("context",),
    "prompt": ("context", "input"),
    "query": ("context",),
}
"""The columns with more of what is asked: they follow it after an empty line."""
THOUGHTS = (
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("gemini_thinking_trajectory", "gemini_attempt"),
    ("thinking_trajectories", "attempt"),
)
"""The columns of s1K for thoughts and for the answer that followed them."""
SYSTEMS = ("system", "system_prompt")
LABELS = ("label", "kto_tag")
"""The columns that say whether an answer is a good one (KTO)."""


@dataclass(frozen=True)
class Asked:
    """The question of a row: the turns up to the answer, the tools offered, and the columns that say so."""

    messages: list[Message]
    tools: Any
    columns: set[str]


@dataclass(frozen=True)
class Answered(Asked):
    """The question of a row and the assistant's turn that answers it."""

    answer: Message


def has(row: dict[str, Any], name: str) -> bool:
    """Return whether a row has a value in a column."""
    return row.get(name) is not None


def answered(row: dict[str, Any], where: str) -> Answered:
    """Return prompt and answer of a row, by the columns it has. Raises UserError naming what is missing or wrong."""
    for chat in CHATS:
        if has(row, chat):
            return _with_answer_last(row, chat, where)
    for thought, attempt in THOUGHTS:
        if has(row, "question") and has(row, thought) and has(row, attempt):
            answer = _thought_through(row, thought, attempt, where)
            asked = framed(row, [_user(text_of(row["question"], "question", where))], {"question"}, where)
            return Answered(asked.messages, asked.tools, asked.columns | {thought, attempt}, answer)
    prompt = next((name for name in PROMPTS if has(row, name)), None)
    answer_column = next((name for name in ANSWERS.get(prompt or "", ()) if has(row, name)), None)
    if prompt is None or answer_column is None:
        raise _unknown(row, where)
    asked = asked_in(row, prompt, where)
    answer = _answer_in(row[answer_column], answer_column, where)
    return Answered(asked.messages, asked.tools, asked.columns | {answer_column}, answer)


def asked_in(row: dict[str, Any], prompt: str, where: str) -> Asked:
    """Return what a row asks in its column `prompt`, in those that belong to it, and in its history and
    system columns.
    """
    columns = {prompt}
    if prompt in CHATS or (prompt == "prompt" and is_conversation(row[prompt])):
        turns = conversation(row[prompt], prompt, where)
    else:
        text = text_of(row[prompt], prompt, where)
        for name in FURTHER.get(prompt, ()):
            if has(row, name) and name != prompt:
                text += f"\n\n{more}" if (more := text_of(row[name], name, where)).strip() else ""
                columns.add(name)
        turns = [_user(text)]
    if has(row, "history"):
        turns = [*_history(row["history"], where), *turns]
        columns.add("history")
    return framed(row, turns, columns, where)


def framed(row: dict[str, Any], turns: list[Message], columns: set[str], where: str) -> Asked:
    """Return the turns with the row's system turn before them, and its tools. Raises UserError where nothing
    is asked.
    """
    columns = set(columns)
    for name in SYSTEMS:
        if has(row, name):
            columns.add(name)
            system = {"role": "system", "content": text_of(row[name], name, where)}
            if turns and turns[0]["role"] == "system" and turns[0]["content"] != system["content"]:
                raise UserError(
                    f"{name} and the first turn are two different system turns", where=where, mend="keep one of them"
                )
            if system["content"].strip() and (not turns or turns[0]["role"] != "system"):
                turns = [system, *turns]
    tools = None
    if has(row, "tools"):
        columns.add("tools")
        tools = _tools(row["tools"], where)
    if not any(turn["content"].strip() for turn in turns if turn["role"] not in ("system", "developer")):
        raise UserError("there is no prompt", where=where, mend="give what the answer answers")
    for number, (one, other) in enumerate(pairwise(turns), 1):
        if one["role"] == other["role"] == "assistant":
            raise UserError(
                f"turns {number} and {number + 1} are both the assistant's", where=where, mend="join them into one turn"
            )
    return Asked(turns, tools, columns)


def refuse_labels(row: dict[str, Any], where: str) -> None:
    """Raises UserError for an answer that the row calls a bad one, and for one half of a preference pair."""
    for name in LABELS:
        if name in row and row[name] in (False, 0, "false", "False", "bad", "undesirable"):
            raise UserError(
                f"{name} is {row[name]!r}: the row holds an answer that is not wanted (KTO's form)",
                where=where,
                mend="keep the wanted answers only, or leave the others out with --on-bad-row skip; remask dpo learns "
                "from pairs of answers to one prompt (chosen and rejected)",
            )


def labels(row: dict[str, Any]) -> set[str]:
    """Return the columns that say the row's answer is a good one."""
    return {name for name in LABELS if row.get(name) in (True, 1, "true", "True", "good", "desirable")}


def _with_answer_last(row: dict[str, Any], chat: str, where: str) -> Answered:
    """The last assistant turn is the answer; all before it is the prompt."""
    if isinstance(row[chat], str) and not is_conversation(row[chat]):
        raise UserError(f"{chat} is text, where a list of messages was expected", where=where, mend="see docs/data.md")
    turns = conversation(row[chat], chat, where)
    if not turns or turns[-1]["role"] != "assistant":
        last = f"the last one is of role {turns[-1]['role']}" if turns else "there is none"
        raise UserError(
            f"{chat} does not end with an assistant's turn ({last}): there is no answer",
            where=where,
            mend="let the answer be the last turn",
        )
    if turns[-1].get("weight") == 0:
        raise UserError(
            f"the last of {chat} has weight 0: there is no answer to learn",
            where=where,
            mend="give it the weight 1, or take the row out",
        )
    if len(turns) > 1 and turns[-2]["role"] == "assistant":
        raise UserError("the last two turns are both the assistant's", where=where, mend="join them into one turn")
    asked = framed(row, turns[:-1], {chat}, where)
    return Answered(asked.messages, asked.tools, asked.columns, turns[-1])


def _answer_in(value: Any, name: str, where: str) -> Message:
    """The assistant's turn in a column of text, or in one that holds that turn alone."""
    if isinstance(value, str) and not is_conversation(value):
        return {"role": "assistant", "content": value}
    if not isinstance(value, list | dict | str):
        text_of(value, name, where)
    turns = conversation(value, name, where)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise UserError(
            f"{name} is not one assistant's turn",
            where=where,
            mend="give text, or a list with one turn of role assistant",
        )
    return turns[0]


def _thought_through(row: dict[str, Any], thought: str, attempt: str, where: str) -> Message:
    parts = row[thought] if isinstance(row[thought], list) else [row[thought]]  # s1K stores a list of one
    reasoning = "\n".join(text_of(part, thought, where) for part in parts)
    answer = text_of(row[attempt], attempt, where)
    content = f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"
    return {"role": "assistant", "content": content}


def _history(value: Any, where: str) -> list[Message]:
    """Earlier questions and answers (Alpaca's `history`): pairs of texts."""
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise UserError(
            "history is not a list of pairs of a question and its answer",
            where=where,
            mend='write [["question", "answer"], …]',
        )
    return [
        {"role": role, "content": text_of(said, "history", where)}
        for pair in value
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


def _tools(value: Any, where: str) -> Any:
    """A list of tools, also written as JSON text; nothing where it is empty."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = from_json(value)
        except ValueError:
            raise UserError(
                "tools is text that is no JSON", where=where, mend="write a list, or a list as JSON"
            ) from None
    if not isinstance(value, list):
        raise UserError("tools is not a list", where=where, mend="write a list, or a list as JSON")
    return value or None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


HINTS: tuple[tuple[Callable[[dict[str, Any]], bool], str], ...] = (
    (lambda row: has(row, "chosen") and has(row, "rejected"), "this is a pair of answers: train on it with remask dpo"),
    (lambda row: has(row, "text"), "plain text has no prompt to answer: split it into prompt and completion"),
)


def _unknown(row: dict[str, Any], where: str) -> UserError:
    """What to say of a row in which no layout is found."""
    absent = [name for name in (*CHATS, *PROMPTS, *sum(ANSWERS.values(), ())) if name in row and row[name] is None]
    if absent:
        return UserError(
            f"{absent[0]} is null", where=where, mend="give a text, or skip such rows with --on-bad-row skip"
        )
    hint = next((hint for holds, hint in HINTS if holds(row)), None)
    known = (
        "give prompt + completion, messages, conversations, instruction + output, question + answer, or s1K's columns"
    )
    return UserError(
        f"no columns Remask knows among {', '.join(map(str, row)) or 'none'}", where=where, mend=hint or known
    )
