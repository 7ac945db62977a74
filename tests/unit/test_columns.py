"""The layouts that people publish, the columns nobody reads, and files that would lose values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remask.data.canvas import build_rows, tell_faults
from remask.data.files import read_rows
from remask.data.sources import Example, load_examples
from remask.errors import UserError
from remask.preference.data import load_pairs

Q = {"role": "user", "content": "1+1?"}
A = {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"name": "add", "arguments": {"a": 1}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def one(row: dict[str, Any], folder: Path) -> Example:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    loaded = load_examples(str(path))
    assert not loaded.unread, loaded.unread
    return loaded.examples[0]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "response": "2"},
        {"prompt": "1+1?", "output": "2"},
        {"prompt": "1+1?", "answer": "2"},
        {"instruction": "1+1?", "output": "2"},
        {"instruction": "1+1?", "input": "", "output": "2", "history": [], "system": None},
        {"instruction": "1+1?", "response": "2", "context": ""},
        {"query": "1+1?", "response": "2"},
        {"question": "1+1?", "response": "2"},
        {"problem": "1+1?", "answer": "2"},
        {"problem": "1+1?", "solution": "2"},
        {"input": "1+1?", "output": "2"},
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
        {"conversations": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]},
        {"conversation": [Q, A]},
        {"messages": json.dumps([Q, A])},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]},
                A,
            ]
        },
        {"messages": [{**Q, "tool_calls": None, "name": ""}, A]},
        {"prompt": [Q], "completion": A},
        {"prompt": "1+1?", "completion": "2", "label": True},
    ],
)
def test_one_question_and_its_answer(row: dict[str, Any], tmp_path: Path) -> None:
    found = one(row, tmp_path)
    assert (found.messages, found.completion, found.further, found.tools) == ((Q,), "2", {}, None)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Add.", "input": "1 and 1", "output": "2"}, ["user: Add.\n\n1 and 1"]),
        ({"instruction": "Add.", "context": "1 and 1", "response": "2"}, ["user: Add.\n\n1 and 1"]),
        ({"question": "How many?", "context": "Ann has 2.", "answer": "2"}, ["user: How many?\n\nAnn has 2."]),
        ({"system": "Be brief.", "question": "1+1?", "answer": "2"}, ["system: Be brief.", "user: 1+1?"]),
        ({"system_prompt": "Be brief.", "messages": [Q, A]}, ["system: Be brief.", "user: 1+1?"]),
        ({"system": "Be brief.", "messages": [SYSTEM, Q, A]}, ["system: Be brief.", "user: 1+1?"]),
        (
            {"instruction": "And 1+1?", "output": "2", "history": [["0+0?", "0"]]},
            ["user: 0+0?", "assistant: 0", "user: And 1+1?"],
        ),
        ({"messages": [Q, {**A, "content": ""}, {"role": "tool", "content": "x"}, A]}, None),
        ({"messages": [{"role": "developer", "content": "d"}, Q, A]}, ["developer: d", "user: 1+1?"]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "1+1?"},
                    {"from": "gpt", "value": "2"},
                ]
            },
            ["system: s", "user: 1+1?"],
        ),
    ],
)
def test_what_stands_before_the_question(row: dict[str, Any], messages: list[str] | None, tmp_path: Path) -> None:
    found = one(row, tmp_path)
    if messages is not None:
        assert [f"{turn['role']}: {turn['content']}" for turn in found.messages] == messages
    assert found.completion == "2"


def test_tools_and_calls_are_kept(tmp_path: Path) -> None:
    asked = {
        "conversations": [{"from": "human", "value": "1+1?"}, {"from": "function_call", "value": json.dumps(CALL)}]
    }
    found = one({**asked, "tools": json.dumps(TOOLS)}, tmp_path)
    assert found.further == {"tool_calls": [{"type": "function", "function": CALL}]}
    assert (found.completion, found.tools) == ("", TOOLS)
    turn = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
    assert one({"messages": [Q, turn]}, tmp_path).answer == {**turn, "content": ""}
    thought = {**A, "reasoning_content": "one and one"}
    assert one({"messages": [Q, thought]}, tmp_path).further == {"reasoning_content": "one and one"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1+1?", "completion": "3", "label": False}, "label is False: .* not wanted"),
        ({"messages": [Q, A], "kto_tag": False}, "kto_tag is False"),
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, "no columns.*train on it with remask dpo"),
        ({"text": "1+1? 2"}, "no columns.*plain text has no prompt"),
        ({"prompt": "", "completion": "2"}, "there is no prompt"),
        ({"messages": [SYSTEM, A]}, "there is no prompt"),
        ({"messages": "hello"}, "messages is text, where a list of messages was expected"),
        ({"messages": [Q, A, A]}, "both the assistant's"),
        ({"messages": [Q, {**A, "weight": 0}]}, "weight 0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, A]},
            "part of type image_url",
        ),
        ({"system": "a", "messages": [SYSTEM, Q, A]}, "two different system turns"),
        ({"instruction": "x", "output": "y", "history": ["a"]}, "history is not a list of pairs"),
        ({"messages": [Q, A], "tools": "{"}, "tools is text that is no JSON"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "add(1)"}]},
            "no JSON with a name",
        ),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role 'alien'"),
    ],
)
def test_rows_that_would_teach_something_else_are_refused(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 1: .*{said}"):
        one(row, tmp_path)


def test_what_is_not_read_is_named_with_its_rows(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [
        {"question": "1+1?", "answer": "2", "choices": ["1", "2"], "level": 1},
        {"question": "1+1?", "answer": "2", "choices": [], "level": 0},
        {"messages": [{**Q, "name": "Ann"}, A], "question": "again"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_examples(str(path))
    assert loaded.unread == {"column choices": 1, "column level": 2, "column question": 1}
    tell_faults("mine", loaded, build_rows(loaded.examples, tokenizer, max_length=99, over_long="error"))
    assert capsys.readouterr().err == (
        "mine: not used: column choices (1 of 3 rows), column level (2 of 3 rows), column question (1 of 3 rows), "
        "message key name (1 of 3 rows)\n"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be brief.", "question": "1+1?", "chosen": "2", "rejected": "3"},
        {"instruction": "1+1?", "input": "", "chosen": "2", "rejected": "3", "system": "Be brief."},
        {"conversations": [SYSTEM, Q], "chosen": A, "rejected": {**A, "content": "3"}},
        {
            "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "1+1?"}],
            "chosen": {"from": "gpt", "value": "2"},
            "rejected": {"from": "gpt", "value": "3"},
        },
        {"system": "Be brief.", "prompt": "1+1?", "response_0": "3", "response_1": "2", "better_response_id": 1},
        {"system": "Be brief.", "question": "1+1?", "response_j": "2", "response_k": "3"},
        {"system": "Be brief.", "instruction": "1+1?", "chosen_response": "2", "rejected_response": "3"},
        {"chosen": [SYSTEM, Q, A], "rejected": [SYSTEM, Q, {**A, "content": "3"}]},
    ],
)
def test_pairs_in_public_forms(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (pair,) = load_pairs(str(path), split="train", prompt_style="compact", on_bad_row="error").examples
    assert (pair.messages, pair.chosen["content"], pair.rejected["content"]) == ((SYSTEM, Q), "2", "3")


def test_a_single_answer_with_a_label_is_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "1+1?", "completion": "2", "label": True}) + "\n")
    with pytest.raises(UserError, match="one answer and a label"):
        load_pairs(str(path), split="train", prompt_style="compact", on_bad_row="error")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "prompt,completion\nhello,Hello, world\n2,3\n",
            r"row 1 \(line 2\): the row has 3 fields and there are 2 columns",
        ),
        ("prompt,completion\nhello\n", "the row has 1 fields and there are 2 columns"),
        ('prompt,completion\n1,2\n3,"4\n5,6\n7,8\n', "a double quote in the row that begins on line 3 is not closed"),
        ('prompt,completion\n"a"b,c\n', r"row 1 \(line 2\): not readable as CSV"),
        ("prompt,prompt\n1,2\n", "two columns are named 'prompt'"),
        ("prompt,,completion\n1,2,3\n", "a column has no name"),
    ],
)
def test_a_table_that_would_lose_values_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_examples(str(path))


def test_a_bad_row_of_a_table_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\nhello,Hello, world\n\n2,3\n"a"b,c\n"4\n5","6, ""7"""\n')
    loaded = load_examples(str(path), on_bad_row="skip")
    assert [(e.messages[0]["content"], e.completion) for e in loaded.examples] == [("2", "3"), ("4\n5", '6, "7"')]
    assert len(loaded.skipped) == 2


def test_tabs_separate_too(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("prompt\tcompletion\na, b\tc\n")
    assert load_examples(str(tmp_path / "rows.tsv")).examples[0].messages[0]["content"] == "a, b"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_key_given_twice_is_no_row(name: str, tmp_path: Path) -> None:
    row = '{"prompt": "a", "prompt": "b", "completion": "c"}'
    (tmp_path / name).write_text(f"[{row}]" if name.endswith(".json") else row)
    with pytest.raises(UserError, match="the key 'prompt' is given twice"):
        load_examples(str(tmp_path / name))


def test_several_files_and_patterns(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"part-{name}.jsonl").write_text(json.dumps({"prompt": name, "completion": name}) + "\n")
    a, b, c = (str(tmp_path / f"part-{name}.jsonl") for name in "abc")
    assert [row["prompt"] for _, row in read_rows(f"{tmp_path}/part-*.jsonl")] == ["a", "b", "c"]
    assert [row["prompt"] for _, row in read_rows(f"{c},{a}")] == ["c", "a"]
    assert [e.where for e in load_examples(f"{tmp_path}/part-[ab].jsonl").examples] == [f"{a}, line 1", f"{b}, line 1"]
    assert len(load_examples(f"{tmp_path}/part-*.jsonl:2").examples) == 2
    assert len(load_examples(f"{a},{b}:1").examples) == 1
    for source, said in (
        (f"{tmp_path}/nothing-*.jsonl", "no file matches this pattern"),
        (f"{a},{tmp_path}/gone.jsonl", "gone.jsonl: no such file"),
        (f"{a}:1,{b}", "a sample is of all of them together"),
    ):
        with pytest.raises(UserError, match=said):
            load_examples(source)


def test_rows_that_are_too_long_are_counted_at_once(tokenizer: Any) -> None:
    """Rows of 10 to 29 tokens on a canvas of 26: three are too long, 28 tokens hold 19 of the 20."""
    examples = [Example((Q,), "x" * n, f"line {n}") for n in range(2, 22)]
    with pytest.raises(
        UserError, match=r"line 19: the row takes 27 tokens, the canvas holds 26; 3 of 20 rows"
    ) as caught:
        build_rows(examples, tokenizer, max_length=26, over_long="error")
    assert "28 hold 95 %, 29 hold 99 %, 29 hold 100 % of them all" in str(caught.value)
