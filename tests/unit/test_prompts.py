"""What a policy is asked: rows of one's own as prompts, and what cannot be one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.rl.prompts import Prompt, data_prompts, fitting
from remask.tasks.benchmark import Asking

Read = Callable[..., list[Prompt]]


@pytest.fixture
def read(tmp_path: Path, tokenizer: Any) -> Read:
    """Rows as a file's prompts; a text is a line of it."""

    def of(*rows: Any, system: str | None = None) -> list[Prompt]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return data_prompts(str(path), tokenizer, Asking("compact", system=system))

    return of


def user(content: Any, role: Any = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


def test_text_or_messages_and_further_columns(read: Read) -> None:
    text, turns = read({"prompt": "hi", "gold": 1}, {"messages": [user("hi")], "gold": [2]})
    assert text.ids == turns.ids
    assert (text.text, text.columns, turns.columns) == ("hi", {"gold": 1}, {"gold": [2]})


def test_the_system_turn_stands_before_messages_that_have_none(read: Read) -> None:
    text, turns, own = read(
        {"prompt": "hi"}, {"messages": [user("hi")]}, {"messages": [user("b", "system"), user("hi")]}, system="a"
    )
    plain = read({"prompt": "hi"})[0]
    assert turns.ids == text.ids != plain.ids
    assert own.ids == read({"messages": [user("b", "system"), user("hi")]})[0].ids


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": 1}, "the row has no prompt"),
        ({"prompt": " "}, "there is no prompt"),
        ({"prompt": 3}, "prompt is a number, not text|neither text nor"),
        ({"messages": []}, "there is no prompt"),
        ({"messages": [user("")]}, "there is no prompt"),
        ({"messages": [user("hi"), user("yes", "assistant")]}, "messages does not end with a turn to be answered"),
        ({"messages": [user("be good", "boss"), user("hi")]}, "message 1 has the unknown role 'boss'"),
        ({"messages": [user("hi", 3), user("hi")]}, "message 1 has the unknown role 3"),
        ({"messages": [user(["hi"])]}, "message 1 has a content that is a list, not text"),
        ('{"prompt": "\\ud800"}', "the user turn holds half of a character"),
        ([1, 2], "a row is a mapping of columns"),
        ("{oops", "not JSON"),
    ],
)
def test_rows_that_are_no_prompt_are_named(read: Read, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: .*{message}"):
        read({"prompt": "hi"}, row)


def test_a_template_that_refuses_the_turns_is_told(read: Read, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('one turn only') }}")
    with pytest.raises(UserError, match=r"line 1: the chat template refuses this conversation \(one turn only\)"):
        read({"prompt": "hi"})


def test_a_row_of_a_table_with_too_many_values(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,gold\nhi,1,3\n")
    with pytest.raises(UserError, match=r"row 1 \(line 2\): the row has 3 fields and there are 2 columns"):
        data_prompts(str(path), tokenizer, Asking("compact"))


def test_prompts_that_are_too_long() -> None:
    prompts = [Prompt(str(n), "", [0] * n, {}) for n in (1, 2, 3)]
    assert fitting(prompts, 2, drop=True, mend="") == (prompts[:2], 1)
    assert fitting(prompts, None, drop=False, mend="") == (prompts, 0)
    with pytest.raises(UserError, match=r"3: 1 of 3 prompts are longer than 2 tokens, the first has 3; cut them"):
        fitting(prompts, 2, drop=False, mend="cut them")
    with pytest.raises(UserError, match="all 3 prompts are longer than 0 tokens; cut them"):
        fitting(prompts, 0, drop=True, mend="cut them")
