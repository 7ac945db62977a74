"""Rows that are what a model is tested on, or nearly so, are found and left out of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remask.cli import main
from remask.data.near import Tested, runs
from remask.data.sources import Example, load_examples
from remask.data.topics import topics
from remask.errors import UserError
from remask.tasks.generated import generated_examples

QUESTION = "Ann has 3 red apples and gives 2 of them to her old friend Bob on Monday."


def example(prompt: str, answer: str = "1") -> Example:
    return Example(({"role": "user", "content": prompt},), answer, "rows.jsonl, line 1")


@pytest.fixture
def tested(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    rows = [{"question": QUESTION, "id": 7, "answer": "3 - 2 = 1"}, {"question": "Too short to say much.", "id": 8}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_runs_of_eight_words_by_hand() -> None:
    assert runs("one two three four five six seven") == set()
    assert runs("It is 1,234.5, not 17: a b c") == {("it", "is", "0", "not", "0", "a", "b", "c")}
    assert len(runs(QUESTION)) == 17 - 8 + 1


@pytest.mark.parametrize(
    ("prompt", "share"),
    [
        (QUESTION, 1.0),
        (QUESTION.upper().replace(" ", "\n"), 1.0),
        ("Read this. " + QUESTION.replace("3", "17") + " How many are left?", 1.0),
        (QUESTION.replace("Monday", "Tuesday"), 9 / 10),  # one run of ten has the last word
        (QUESTION.replace("gives", "sells"), None),  # seven of the ten runs have the seventh word
        ("Too short to say much.", None),
        ("Something else that has nothing to do with any of the questions.", None),
    ],
)
def test_what_is_near(prompt: str, share: float | None, tested: Path) -> None:
    found = Tested(str(tested)).near(example(prompt))
    assert (found and found.share) == (share if share is None else pytest.approx(share))
    if found:
        assert (found.row, found.text) == ("rows.jsonl, line 1", f"{tested}, line 1")


def test_an_answer_may_give_it_away_too(tested: Path) -> None:
    assert Tested(str(tested)).near(example("What is asked?", QUESTION)) is not None


def test_a_run_leaves_such_rows_out_and_says_so(
    tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "rows.jsonl", tmp_path / "run"
    prompts = ["a", QUESTION.replace("3", "9"), "b"]
    data.write_text("".join(json.dumps({"prompt": prompt, "completion": "x"}) + "\n" for prompt in prompts))
    flags = ["sft", "--model", "tiny-direct", "--data", str(data), "--apart-from", str(tested), "--max-steps", "1"]
    flags += ["--report.diagnostics", "off", "--trainer.report-to", "none"]
    assert main([*flags, "--output-dir", str(run)]) == 0
    said = capsys.readouterr().err
    passed = "compared with 1 text that will be tested (2 shorter or common ones passed over)"
    assert f"{data}: {passed}, 1 of 3 rows left out; for example {data}, line 2 has 100 % of {tested}, line 1" in said
    recorded = json.loads((run / "run.json").read_text())["data"]
    assert (recorded["rows"], recorded["apart_from"]) == (2, str(tested))
    assert recorded["near"] == [{"row": f"{data}, line 2", "text": f"{tested}, line 1", "share": 1.0}]

    data.write_text(json.dumps({"prompt": QUESTION, "completion": "x"}) + "\n")
    assert main([*flags, "--output-dir", str(tmp_path / "other")]) == 2
    assert "all 1 rows are near texts of" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text('{"question": "too short"}\n')
    with pytest.raises(UserError, match="no text of 8 words or more"):
        Tested(str(tmp_path / "short.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        Tested(str(tmp_path / "gone.jsonl"))


def test_conversations_are_looked_into_and_what_all_share_is_not(tmp_path: Path) -> None:
    shared = "Solve the following problem and give the final answer only at the end."
    questions = [f"{shared} {QUESTION}", *(f"{shared} Nothing else of note in number {'x' * n}." for n in range(20))]
    path = tmp_path / "chats.jsonl"
    rows = [{"messages": [{"role": "user", "content": question}]} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Tested(str(path))
    assert found.near(example(f"{shared} What is 2 + 2?")) is None
    near = found.near(example(QUESTION))
    assert near is not None
    assert near.text == f"{path}, line 1"


def test_scripts_without_blanks(tmp_path: Path) -> None:
    path = tmp_path / "zh.jsonl"
    path.write_text(
        json.dumps({"question": "小明有三个红苹果,星期一给了他的朋友两个。还剩几个?"}, ensure_ascii=False) + "\n"
    )
    found = Tested(str(path))
    assert found.near(example("小明有三个红苹果,星期一给了他的朋友两个。")) is not None
    assert found.near(example("今天天气很好,我们去公园散步,看到了很多漂亮的花。")) is None


def test_a_data_sets_name_is_its_rows_to_train_on(tested: Path) -> None:
    with pytest.raises(UserError, match="gsm8k@test"):
        Tested(f"{tested},gsm8k")


@pytest.mark.shared
def test_prompts_of_everyday_things_and_generated_rows_are_near_no_benchmark(shared: Path) -> None:
    """GSM8K's own training rows are: 13 of 7,473 are test problems with other names or numbers."""
    files = ["gsm8k/test.jsonl", "mbpp/sanitized-mbpp.json", "humaneval/HumanEval.jsonl.gz"]
    tested = Tested(",".join(str(shared / "data" / file) for file in files))
    everyday = [example(prompt) for prompt in topics("topics:3000")]
    generated = generated_examples("generated:sudoku+countdown:200", split="train", prompt_style="full")
    assert tested.apart([*everyday, *generated])[1] == []
    found = tested.apart(load_examples(f"gsm8k={shared / 'data' / 'gsm8k' / 'train.jsonl'}").examples)[1]
    assert len(found) == 13
