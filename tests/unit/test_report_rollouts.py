"""The completions kept of rollouts: reading the file, and which of them a report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report_rl import completion, folder_of, group, lines

from remask.errors import UserError
from remask.report.rollouts import Completion, PromptGroup, read_rollouts
from remask.report.runs import load_run
from remask.report.samples import CHARACTERS, LONGEST, MOMENTS, best_and_worst_first, choose, cut, samples, spaced


def kept(tmp_path: Path, rows: list[dict[str, Any]]) -> list[PromptGroup]:
    path = tmp_path / "completions.jsonl"
    path.write_text(lines(rows), encoding="utf-8")
    return read_rollouts(path)


def test_a_group_is_read_whole(tmp_path: Path) -> None:
    answer = completion(0.75, ended=False, advantage=-1)
    (found,) = kept(tmp_path, [group(3, task=None, problem=17, completions=[answer])])
    assert (found.rollout, found.step, found.task, found.problem) == (3, 24, None, "17")
    assert found.completions == (Completion(answer["text"], 57, False, 0.75, {"task": 0.75, "format": 1.0}, -1.0),)


def test_a_reward_that_is_no_number_is_none(tmp_path: Path) -> None:
    (found,) = kept(tmp_path, [group(1, completions=[completion(None), completion(float("nan"))])])
    assert [c.reward for c in found.completions] == [None, None]


def test_no_file_is_no_rollouts(tmp_path: Path) -> None:
    assert read_rollouts(tmp_path / "completions.jsonl") == []


def test_a_running_runs_last_line_may_be_cut_even_in_a_character(tmp_path: Path) -> None:
    text = json.dumps(group(1)) + "\n" + json.dumps(group(2, prompt="ε"), ensure_ascii=False)
    whole = text.encode()
    inside = whole.index("ε".encode()) + 1
    for torn in (whole[:-1], whole[:inside]):
        (tmp_path / "completions.jsonl").write_bytes(torn)
        assert [g.rollout for g in read_rollouts(tmp_path / "completions.jsonl")] == [1]
    (tmp_path / "completions.jsonl").write_bytes(whole)
    assert len(read_rollouts(tmp_path / "completions.jsonl")) == 2


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    row = group(1, completions=[completion(1.0, text="a\u2028b\u0085c")])
    (tmp_path / "completions.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rollouts(tmp_path / "completions.jsonl")[0].completions[0].text == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    "bad",
    [
        "not json",
        "[]",
        json.dumps(group(1, completions=[])),
        json.dumps(group(1, completions={})),
        json.dumps(group(1, completions=["text"])),
        json.dumps(group(1, rollout="1")),
        json.dumps(group(1, rollout=True)),
        json.dumps(group(1, prompt=None)),
        json.dumps(group(1, task=3)),
        json.dumps(group(1, completions=[completion(0.5, reward="0.5")])),
        json.dumps(group(1, completions=[completion(0.5, reward=True)])),
        json.dumps(group(1, completions=[completion(0.5, rewards={"task": "x"})])),
        json.dumps(group(1, completions=[completion(0.5, ended=1)])),
        json.dumps(group(1, completions=[completion(0.5, tokens=5.5)])),
        json.dumps({key: value for key, value in group(1).items() if key != "prompt"}),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: str) -> None:
    run = folder_of(tmp_path, "espo", 0, [])
    (run / "completions.jsonl").write_text(json.dumps(group(1)) + "\n" + bad + "\n")
    with pytest.raises(UserError) as caught:
        load_run(run)
    assert f"{run / 'completions.jsonl'}, line 2" in str(caught.value)


def test_the_same_problems_are_followed_where_they_come_back(tmp_path: Path) -> None:
    rows = [group(r, p) for r in range(1, 8) for p in ("often", f"once:{r}", "odd" if r % 2 else "even")]
    shown, same = choose(kept(tmp_path, rows))
    assert same
    assert [(g.rollout, g.problem) for g in shown if g.problem == "often"] == [(r, "often") for r in (1, 3, 5, 7)]
    assert [(g.rollout, g.problem) for g in shown if g.problem == "odd"] == [(r, "odd") for r in (1, 3, 5, 7)]
    assert len(shown) == 8
    assert [g.rollout for g in shown] == sorted(g.rollout for g in shown)


def test_the_same_key_in_two_tasks_is_two_problems(tmp_path: Path) -> None:
    rows = [group(r, "0", task=f"task {r}") for r in (1, 2, 3)]
    assert choose(kept(tmp_path, rows))[1] is False


def test_groups_over_time_are_shown_where_no_problem_comes_back(tmp_path: Path) -> None:
    rows = [group(r, f"{r}:{k}") for r in range(10, 0, -1) for k in range(3)]
    shown, same = choose(kept(tmp_path, rows))
    assert not same
    assert [g.problem for g in shown] == [f"{r}:{k}" for r in (1, 4, 7, 10) for k in (0, 1)]


def test_a_problem_that_came_back_once_in_a_long_run_is_not_followed(tmp_path: Path) -> None:
    rows = [group(r, "twice" if r in (2, 3) else str(r)) for r in range(1, 8)]
    shown, same = choose(kept(tmp_path, rows))
    assert ([g.rollout for g in shown], same) == ([1, 3, 5, 7], False)
    assert choose(kept(tmp_path, rows[1:3]))[1] is True  # the only two rollouts there are


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 7, 100])
def test_moments_are_spaced_from_the_first_to_the_last(count: int) -> None:
    moments = spaced(list(range(count)))
    assert len(moments) == len(set(moments)) == min(count, MOMENTS)
    assert (moments[0], moments[-1]) == (0, count - 1)


def test_best_and_worst_come_first(tmp_path: Path) -> None:
    rewards = [0.5, None, -1.0, 0.75, 2.0]
    (found,) = kept(tmp_path, [group(1, completions=[completion(reward) for reward in rewards])])
    ordered = best_and_worst_first(found.completions)
    assert [(mark, c.reward) for mark, c in ordered] == [
        ("best", 2.0),
        ("worst", -1.0),
        ("", 0.75),
        ("", 0.5),
        ("", None),
    ]


@pytest.mark.parametrize("rewards", [[1.0, 1.0], [None, None], [0.0, None], [0.5]])
def test_where_rewards_do_not_differ_none_is_best(tmp_path: Path, rewards: list[float | None]) -> None:
    (found,) = kept(tmp_path, [group(1, completions=[completion(r, text=str(i)) for i, r in enumerate(rewards)])])
    ordered = best_and_worst_first(found.completions)
    assert [(mark, c.text) for mark, c in ordered] == [("", str(i)) for i in range(len(rewards))]


def test_equal_rewards_are_called_that_and_large_groups_are_capped(tmp_path: Path) -> None:
    rows = [group(1, completions=[completion(1.0)] * 40), group(1, "none", completions=[completion(None)] * 2)]
    run = load_run(folder_of(tmp_path, "espo", 0, [], rows))
    first, second = samples([run])[0]["moments"][0]["groups"]
    assert (first["equal"], first["count"], len(first["completions"])) == (True, 40, 12)
    assert second["equal"] is False


@pytest.mark.parametrize(
    "text", ["word " * 1000, "x" * 5000, "line\n" * 300, " " + "x" * 5000, "é\n" * 10 + "y" * 30000]
)
def test_a_long_text_is_cut_and_can_be_put_together_again(text: str) -> None:
    shown = cut(text)
    assert 0 < len(shown["head"]) <= CHARACTERS
    assert text.startswith(shown["head"] + shown["rest"])
    assert len(shown["rest"]) <= LONGEST
    assert len(shown["head"]) + shown["more"] == len(text)
    assert len(shown["head"]) + len(shown["rest"]) + shown["left_out"] == len(text)


def test_a_text_is_not_cut_inside_a_word_nor_for_a_little() -> None:
    assert cut("word " * 200)["head"].endswith("word ")
    nearly = "a" * (CHARACTERS + 20)
    assert cut(nearly) == {"head": nearly, "rest": "", "more": 0, "left_out": 0}
    assert cut("")["head"] == ""
