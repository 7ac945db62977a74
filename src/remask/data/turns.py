"""Turns of a conversation in the forms people write them: role and content, from and value, text, content parts."""

from __future__ import annotations

from typing import Any

from remask.chat_template import Message
from remask.errors import UserError
from remask.files import from_json

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")
"""The roles that are given to the chat template as they are."""
SPEAKERS = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_call": "assistant",
}
"""The names that other conventions (ShareGPT's first of all) have for the roles."""
NAMES = (("role", "content"), ("from", "value"))
"""The keys of a turn: who speaks, and what is said."""


def conversation(value: Any, name: str, where: str) -> list[Message]:
    """Read a column of text (the user's turn) or of turns, also written as JSON text. Raises UserError for anything
    else.

    Keys of a turn beside its role and content stay with it: the chat template may read them. Those without a value
    are left out.
    """
    if isinstance(value, str):
        parsed = _parsed_turns(value)
        if parsed is None:
            return [{"role": "user", "content": value}]
        value = parsed
    if isinstance(value, dict) and any(set(names) <= set(value) for names in NAMES):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UserError(
            f"{name} is neither text nor a list of messages", where=where, mend='write [{"role": …, "content": …}, …]'
        )
    return [_turn(turn, f"{name}, message {number}", where) for number, turn in enumerate(value, 1)]


def is_conversation(value: Any) -> bool:
    """Return whether a column holds turns, and not text."""
    return not isinstance(value, str) or _parsed_turns(value) is not None


def _parsed_turns(text: str) -> list[Any] | None:
    """The turns that a text is the JSON of, as CSV files hold them."""
    if not text.lstrip().startswith("[{"):
        return None
    try:
        value = from_json(text)
    except ValueError:
        return None
    plain = isinstance(value, list) and all(isinstance(turn, dict) for turn in value)
    return value if plain and all(any(names[0] in turn for names in NAMES) for turn in value) else None


def _turn(turn: dict[str, Any], name: str, where: str) -> Message:
    who, said = next((names for names in NAMES if names[0] in turn), NAMES[0])
    spoken = turn.get(who)
    role = SPEAKERS.get(spoken, spoken) if isinstance(spoken, str) and who == "from" else spoken
    if role not in ROLES:
        raise UserError(
            f"{name} has {f'the unknown role {spoken!r}' if spoken is not None else 'no role'}",
            where=where,
            mend=f"the roles are {', '.join(ROLES)}; with from and value also {', '.join(SPEAKERS)}",
        )
    further = {key: part for key, part in turn.items() if key not in (who, said) and part not in (None, [], {}, "")}
    content = turn.get(said)
    if spoken == "function_call" and isinstance(content, str):
        return {
            "role": role,
            "content": "",
            "tool_calls": [{"type": "function", "function": _call(content, name, where)}],
        }
    if content is None and further.keys() & {"tool_calls", "function_call"}:
        content = ""
    return {"role": role, "content": _content(content, name, where), **further}


def _content(content: Any, name: str, where: str) -> str:
    """Text, or the joined text of content parts (`[{"type": "text", "text": …}]`)."""
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        other = [str(part.get("type")) for part in content if not isinstance(part.get("text"), str)]
        if other:
            raise UserError(
                f"{name} has a part of type {other[0]}, and these models read text only",
                where=where,
                mend="take such rows out, or skip them with --on-bad-row skip",
            )
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        kind = "no content" if content is None else f"a content that is {_kind(content)}, not text"
        raise UserError(f"{name} has {kind}", where=where, mend="give it a content")
    return content


def _call(text: str, name: str, where: str) -> Any:
    try:
        call = from_json(text)
    except ValueError:
        call = None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise UserError(
            f"{name} is a function_call that is no JSON with a name",
            where=where,
            mend="write its name and arguments as JSON",
        )
    return call


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping", str: "text"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def text_of(value: Any, name: str, where: str) -> str:
    """Return the text of a column that must be text. Raises UserError for anything else."""
    if not isinstance(value, str):
        raise UserError(f"{name} is {_kind(value)}, not text", where=where, mend="give text")
    return value
