"""From messages to token ids: where the prompt ends is where the answer starts, and the answer ends with one end token.

A chat template is a program that came with the checkpoint, and public ones leave out turns, rewrite answers, close no
turn, or open the next one. So what a template wrote is checked: each turn's text must be there, the prompt must be what
a model is given to continue from, and the answer ends where its turn does. A row for which this does not hold is an
error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from remask.chat_template import THOUGHT_TAGS, Message, Template, check_text, template_of
from remask.errors import UserError

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The message keys for what was thought before the content."""
TAGS = re.compile("|".join(THOUGHT_TAGS))
TEXT_KEYS = ("tool_calls", "function_call", *THOUGHTS)
"""The message keys for what is said. A template that does not write them would lose it."""


class Encoded(NamedTuple):
    """An encoded conversation: token ids of a prompt (the assistant's header included) and of its answer (its end token
    included), and the message keys that the chat template did not read.
    """

    prompt: list[int]
    response: list[int]
    unread: tuple[str, ...] = ()


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    prefill: str = "",
    tools: Any = None,
    where: str | None = None,
) -> list[int]:
    """Return the ids a model continues from. Without a chat template the turns' texts are joined by newlines.

    A last turn of the assistant's is continued; `prefill` is what the answer begins with. Raises UserError where a
    turn's text is not in what the template wrote, or the template refuses the conversation; `where` names the row.
    """
    template = template_of(tokenizer)
    return _prompt_ids(template, _asked(template, messages, prefill, tools, where).text)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    answer: str | Message,
    *,
    where: str,
    tools: Any = None,
) -> Encoded:
    """Return prompt and answer ids. No token straddles the two; together they read as the whole conversation does.

    `answer` is the assistant's text, or its turn with further keys. Raises UserError naming the row where the chat
    template leaves out or rewrites a turn, changes the prompt once the answer is there, or does not close the answer
    with the token that closes others.
    """
    template = template_of(tokenizer)
    if template.end is None:
        raise UserError("the tokenizer has no EOS token to end an answer with", where=where, mend="set its eos_token")
    turn: Message = {"content": answer} if isinstance(answer, str) else {**answer}
    turn["role"] = "assistant"
    check_text(turn["content"], "the answer", where)
    asked = _asked(template, messages, "", tools, where)
    if template.is_chat:
        turn["content"] = template.spelled(asked.opened) + turn["content"]
        whole = template.render([*asked.turns, turn], opened=False, tools=tools, where=where)
        _refuse_changed_prompt(whole, asked.text, turn, where)
        written = _written(template, whole[len(asked.text) :], turn, where)
        _refuse_left_out(template, whole, [*asked.turns, turn], where, answered=True)
        _refuse_rewritten(template, asked.opened + written, turn["content"], "the answer", where)
        unread = _unread_keys(template, asked, turn, asked.opened + written, where)
    else:
        written = template.marked(turn["content"])
        unread = _unread_keys(template, asked, turn, written, where)
    try:
        response = [*template.continuing(asked.text, written), template.end]
    except UserError as error:
        raise UserError(error.what, where=where, mend=error.mend) from None
    ends = {template.end, tokenizer.eos_token_id}
    if ends.intersection(response[:-1]):
        raise UserError(
            "the answer holds a token that ends it before its end", where=where, mend="take that token out of the text"
        )
    return Encoded(_prompt_ids(template, asked.text), response, tuple(sorted({*asked.unread, *unread})))


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """Return the text before the first stop token."""
    kept = list(ids)
    for place, token in enumerate(kept):
        if token in stop_ids:
            kept = kept[:place]
            break
    return tokenizer.decode(kept, skip_special_tokens=True)


@dataclass(frozen=True)
class _Asked:
    """A prompt. text is what a model continues from, marked, and `opened` its end: the words the answer begins with.
    turns come before the answer; unread are their keys that the template did not read.
    """

    text: str
    opened: str
    turns: list[Message]
    tools: Any
    unread: frozenset[str]


def _asked(template: Template, messages: Sequence[Message], prefill: str, tools: Any, where: str | None) -> _Asked:
    turns = [dict(message) for message in messages]
    for turn in turns:
        check_text(turn["content"], f"the {turn['role']} turn", where)
    check_text(prefill, "the prefill", where)
    if turns and turns[-1]["role"] == "assistant":
        last = turns.pop()
        if set(last) - {"role", "content"}:
            raise UserError(
                "the prompt ends with an assistant's turn that is more than text, which cannot be continued",
                where=where,
                mend="let the prompt end with another role's turn",
            )
        prefill = last["content"] + prefill
    opened = template.marked(prefill)
    if template.is_chat:
        text = template.render(turns, opened=True, tools=tools, where=where)
        _refuse_left_out(template, text, turns, where)
    else:
        text = "".join(f"{template.marked(turn['content'])}\n" for turn in turns)
    asked = _Asked(text + opened, opened, turns, tools, frozenset())
    if tools and (not template.is_chat or text == template.render(turns, opened=True, where=where)):
        raise UserError(
            "the row has tools, and the chat template does not write them",
            where=where,
            mend="take the column out, or use a chat template that reads tools",
        )
    unread = {key for turn in turns for key in _unread_keys(template, asked, turn, text, where)}
    return replace(asked, unread=frozenset(unread))


def _prompt_ids(template: Template, text: str) -> list[int]:
    ids = template.ids(text)
    return ids if template.is_chat else [*template.before, *ids, *template.after]


def _refuse_left_out(
    template: Template, text: str, turns: Sequence[Message], where: str | None, *, answered: bool = False
) -> None:
    """Raises UserError for a turn whose text the template did not write, or wrote otherwise."""
    plain = all(set(turn) == {"role", "content"} for turn in turns)  # else what further keys hold decides as well
    tagged = tuple((turn["role"], tuple(TAGS.findall(turn["content"]))) for turn in turns)
    dropped = _dropped(template, tagged, answered) if plain else frozenset()
    for number, turn in enumerate(turns):
        is_answer = answered and number == len(turns) - 1
        name = "the answer" if is_answer else f"turn {number + 1} ({turn['role']})"
        parts = [part.strip() for part in TAGS.split(turn["content"])]
        lost = [part for place, part in enumerate(parts) if part and (number, place) in dropped]
        if lost and len(lost) == sum(map(bool, parts)):
            raise UserError(
                f"the chat template leaves out the text of {name}",
                where=where,
                mend=f"take the {turn['role']} turn out, or use a chat template that writes it",
            )
        if lost:
            raise _cut(name, lost[0], where)
        if not is_answer:  # the place of an answer is known, and it is looked for there
            _refuse_rewritten(template, text, turn["content"], name, where)


@lru_cache(maxsize=256)
def _dropped(
    template: Template, shape: tuple[tuple[str, tuple[str, ...]], ...], answered: bool
) -> frozenset[tuple[int, int]]:
    """Which turns of a conversation the template leaves out, whatever they say: (turn, which part between the tags of
    a thought). The shape of a conversation is each turn's role and tags.
    """

    def part(turn: int, place: int) -> str:
        return f"remask-turn-{turn}-{place}-"

    turns = [
        {"role": role, "content": part(turn, 0) + "".join(f"{tag}{part(turn, i)}" for i, tag in enumerate(tags, 1))}
        for turn, (role, tags) in enumerate(shape)
    ]
    try:
        text = template.render(turns, opened=not answered)
    except UserError:  # a template that judges contents: the texts themselves are looked for
        return frozenset()
    every = ((turn, place) for turn, (_, tags) in enumerate(shape) for place in range(len(tags) + 1))
    return frozenset((turn, place) for turn, place in every if part(turn, place) not in text)


def _refuse_rewritten(template: Template, text: str, said: str, name: str, where: str | None) -> None:
    """Raises UserError where `said` is not in the marked text. White space around it may differ, and around the tags
    of a thought.
    """
    place = 0
    for part in map(str.strip, TAGS.split(template.marked(said))):
        found = text.find(part, place)
        if found < 0:
            raise _cut(name, template.spelled(part), where)
        place = found + len(part)


def _cut(name: str, part: str, where: str | None) -> UserError:
    return UserError(
        f"the chat template does not write {name} as it is: {_short(part)} is missing",
        where=where,
        mend="use a chat template that keeps the whole text, or take out what it cuts",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _refuse_changed_prompt(whole: str, head: str, turn: Message, where: str) -> None:
    if whole.startswith(head):
        return
    thought = next((key for key in THOUGHTS if turn.get(key)), None)
    cause = f" (its {thought} is written where the prompt already says that there is none)" if thought else ""
    raise UserError(
        f"the chat template changes the prompt once the answer is there{cause}",
        where=where,
        mend="use a template whose generation prompt is a prefix of the full conversation",
    )


def _written(template: Template, tail: str, turn: Message, where: str) -> str:
    """What the template wrote after the prompt, up to the token that closes the turn, that not included: the answer,
    marked. Where no token closes turns, it ends with the last of what the answer says.
    """
    end = tail.find(template.closing) if template.closing is not None else -1
    if end < 0 and template.closing is not None:
        raise UserError(
            f"the chat template does not close this answer with {template.closing}, as it closes others",
            where=where,
            mend="correct the chat template, or take out what it does not close",
        )
    if end < 0:
        last = TAGS.split(template.marked(turn["content"]))[-1]
        last = last if last in tail else last.strip()
        further = set(turn) - {"role", "content"}
        end = len(tail.rstrip()) if further or last not in tail else tail.rindex(last) + len(last)
    return tail[:end]


def _unread_keys(template: Template, asked: _Asked, turn: Message, text: str, where: str | None) -> frozenset[str]:
    """The keys of a turn that the chat template did not read. Raises UserError for one that holds what is said, and for
    a thought that is not in `text`, which the template wrote.
    """
    unread = set()
    for key in sorted(set(turn) - {"role", "content"}):
        if not template.is_chat or not _changes(template, asked, turn, key):
            unread.add(key)
            if key in TEXT_KEYS:
                writer = "the chat template" if template.is_chat else "a model without a chat template"
                raise UserError(
                    f"a message has {key}, and {writer} does not write it",
                    where=where,
                    mend=f"put it into content, take it out, or use a chat template that reads {key}",
                )
        elif key in THOUGHTS and isinstance(turn[key], str):
            _refuse_rewritten(template, text, turn[key], f"{key} of the {turn['role']} turn", where)
    return frozenset(unread)


def _changes(template: Template, asked: _Asked, turn: Message, key: str) -> bool:
    """Whether what the template writes depends on the key."""
    turns = asked.turns if any(turn is one for one in asked.turns) else [*asked.turns, turn]
    without = [{k: v for k, v in one.items() if k != key} if one is turn else one for one in turns]
    rendered = template.render(turns, opened=False, tools=asked.tools)
    try:
        return rendered != template.render(without, opened=False, tools=asked.tools)
    except UserError:  # it needs the key
        return True
