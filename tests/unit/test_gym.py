"""Tasks of reasoning-gym: problems, splits, scores equal to the package's, and what goes wrong."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from remask.environment import versions
from remask.errors import UserError
from remask.tasks import Problem, get, gym
from remask.tasks.benchmark import Benchmark
from remask.tasks.generated import generated_examples, is_generated
from remask.tasks.generator import SPLITS, split_of
from remask.tasks.gym import Gym, Maker, Scorer
from remask.tasks.worker_process import harmless, packed, unpacked

factory = pytest.importorskip("reasoning_gym.factory", reason="needs reasoning-gym: pip install 'remask[gym]'")

EVALUATED = (
    *("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "puzzle24"),
    *("polynomial_multiplication", "simple_integration", "intermediate_integration"),
)
"""The data sets whose verifiers evaluate the answer."""


def task_of(name: str) -> Gym:
    task = get(name)
    assert isinstance(task, Gym)
    return task


def some(name: str, count: int) -> tuple[Gym, list[Problem]]:
    """The first problems of any split."""
    task = task_of(name)
    return task, list(islice(task.proposals(random.Random(3)), count))


def package_score(task: Gym, problem: Problem, answer: str | None) -> float:
    """What the package says in this process; None of its errors is caught."""
    kind, config = factory.DATASETS[task.data_set]
    about = unpacked(json.loads(problem.fields["metadata"]))
    entry = {"question": problem.fields["question"], "answer": problem.fields["answer"], "metadata": about}
    return float(kind(config=config(**task.settings, seed=1)).score_answer(answer, entry))


@pytest.mark.slow
def test_no_question_is_in_two_splits() -> None:
    """3,000 problems, of two seeds and of two settings."""
    questions: dict[str, set[str]] = {}
    for split in SPLITS:
        for name, seed in (("gym:chain_sum", 0), ("gym:chain_sum", 1), ("gym:chain_sum{max_terms:3}", 0)):
            problems = task_of(name).generate(334, split=split, seed=seed)
            found = {problem.fields["question"] for problem in problems}
            assert len(found) == 334
            assert {split_of(problem.key) for problem in problems} == {split}
            questions.setdefault(split, set()).update(found)
    train, validation, test = questions.values()
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.slow
def test_the_same_seed_gives_the_same_problems() -> None:
    task = task_of("gym:gsm_symbolic")
    first, again, other = (task.generate(40, split="test", seed=seed) for seed in (4, 4, 5))
    assert first == again
    assert {p.key for p in first} != {p.key for p in other}
    assert first[:20] == task.generate(20, split="test", seed=4)


def test_the_problems_are_the_packages() -> None:
    """Those of the seed that the stream draws first, number by number."""
    task, problems = some("gym:chain_sum", 25)
    kind, config = factory.DATASETS["chain_sum"]
    entries = kind(config=config(seed=random.Random(3).getrandbits(31)))
    for number, problem in enumerate(problems):
        assert problem.fields["question"] == entries[number]["question"]
        assert problem.fields["answer"] == entries[number]["answer"]
        assert unpacked(json.loads(problem.fields["metadata"])) == entries[number]["metadata"]
    assert task.prompt(problems[0], "compact") == problems[0].fields["question"]
    assert task.prompt(problems[0], "instruct").startswith(problems[0].fields["question"])
    assert "<answer></answer>" in task.prompt(problems[0], "instruct")


@pytest.mark.slow
def test_problems_do_not_hang_on_pythons_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `isomorphic_strings` do, in the package alone."""
    drawn = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        drawn.append(Maker(seconds=0.0, patience=60.0).ask("isomorphic_strings", "{}", 7, 0, 10))
    assert len(drawn[0]) == 10
    assert drawn[0] == drawn[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm_symbolic", "chain_sum", "rearc", "rush_hour", *EVALUATED])
def test_scores_are_those_of_the_package(name: str) -> None:
    """`rearc` has tuples in its metadata, `rush_hour` no reference."""
    task, problems = some(f"gym:{name}", 2)
    for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        right, wrong = problem.fields["answer"] or "A+1", other.fields["answer"] or "B-1"
        for answer in (right, wrong, "7", "(1 + 2) * 3", "[1, 2]", '[["a", "b"]]', "no idea", ""):
            expected = package_score(task, problem, answer.strip())
            grade = task.grade(problem, f"so it is\n<answer>{answer}</answer>")
            assert (grade.score, grade.metrics) == (expected, {"score": expected}), answer
            assert grade.correct == (expected == 1)
            assert grade.answer == answer.strip()
        assert task.grade(problem, right).score == package_score(task, problem, None)
        if problem.fields["answer"] is not None:
            assert task.grade(problem, f"<answer>{right}").correct


def test_rewards_by_hand() -> None:
    """gsm_symbolic gives 0.01 for another number; countdown 0.05 for another value or other numbers."""
    task = task_of("gym:gsm_symbolic")
    problem = task.problem("2 + 2?", "4", "{}")
    answers = ["<answer>4</answer>", "<answer>5</answer>", "4", "<answer>four</answer>"]
    assert task.reward([problem] * 4, answers) == [1.0, 0.01, 0.0, 0.0]
    task = task_of("gym:countdown")
    problem = task.problem("18 from 3, 6, 1?", "3*6*1", json.dumps({"numbers": [3, 6, 1], "target": 18}))
    answers = [f"<answer>{text}</answer>" for text in ("6 * (1 * 3)", "3 + 6 + 1", "18", "eighteen")]
    assert task.reward([problem] * 4, answers) == [1.0, 0.05, 0.05, 0.01]
    assert [grade.correct for grade in task.grade_all([problem] * 4, answers)] == [True, False, False, False]


def test_words_around_an_expression_are_not_evaluated() -> None:
    """The package alone takes `it is 6*3` for a comparison, which is worth 0.05."""
    task = task_of("gym:countdown")
    problem = task.problem("18 from 6, 3?", "6*3", json.dumps({"numbers": [6, 3], "target": 18}))
    assert package_score(task, problem, "it is 6*3") == 0.05
    assert task.grade(problem, "<answer>it is 6*3</answer>").score == 0.01


def test_worked_answers_are_right_and_end_in_the_reference() -> None:
    task, problems = some("gym:gsm_symbolic", 20)
    rng = random.Random(0)
    for problem in problems:
        worked = task.solve(problem, rng)
        assert worked.endswith(f"\n<answer>{problem.fields['answer']}</answer>")
        assert "####" not in worked
        assert task.grade(problem, worked).correct
        assert task.without_work(worked) == f"<answer>{problem.fields['answer']}</answer>"


def test_rows_are_of_the_tasks_in_turn() -> None:
    source = "gym:lcm+gcd:5:2"
    assert is_generated(source)
    rows = generated_examples(source, split="train", prompt_style="compact")
    assert rows == generated_examples("generated:gym:lcm+gym:gcd:5:2", split="train", prompt_style="compact")
    assert [row.where.split(":")[1] for row in rows] == ["lcm", "gcd", "lcm", "gcd", "lcm"]
    problems = task_of("gym:lcm").generate(3, split="train", seed=2)
    assert rows[2].messages == ({"role": "user", "content": problems[1].fields["question"]},)
    assert rows[2].completion == f"<answer>{problems[1].fields['answer']}</answer>"


def test_settings_change_the_problems() -> None:
    task = task_of("gym:chain_sum{min_terms:2; max_terms:2;allow_negation:true}")
    assert task.name == "gym:chain_sum{allow_negation:true;max_terms:2;min_terms:2}"
    assert task_of(task.name).settings == task.settings == {"min_terms": 2, "max_terms": 2, "allow_negation": True}
    found = [json.loads(p.fields["metadata"])["num_terms"] for p in task.generate(20, split="train", seed=0)]
    assert set(found) == {2}
    rows = generated_examples("gym:chain_sum{max_terms:2}:3:1", split="train", prompt_style="compact")
    assert len(rows) == 3


def test_where_the_problems_come_from_names_the_version() -> None:
    benchmark = Benchmark.parse("gym:gcd", count=3, split="test", seed=2)
    version = versions()["reasoning-gym"]
    assert benchmark.source == f"generated test split, seed 2 (reasoning-gym {version})"
    assert len(benchmark.problems) == 3


def test_a_file_with_the_packages_columns_is_read(tmp_path: Path) -> None:
    kind, config = factory.DATASETS["gsm_symbolic"]
    entries = kind(config=config(seed=1, size=3))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(entries[i]) + "\n" for i in range(3)))
    benchmark = Benchmark.parse(f"gym:gsm_symbolic={tmp_path / 'rows.jsonl'}", count=None, split="test", seed=0)
    assert [p.fields["question"] for p in benchmark.problems] == [entries[i]["question"] for i in range(3)]
    assert benchmark.task.grade(benchmark.problems[0], f"<answer>{entries[0]['answer']}</answer>").correct
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": 2, "metadata": {}}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1: .*not texts"):
        Benchmark.parse(f"gym:gsm_symbolic={tmp_path / 'rows.jsonl'}", count=None, split="test", seed=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gym:gsm", r"has no data set 'gsm'; did you mean gsm_symbolic"),
        ("gym:qqqq", r"has no data set 'qqqq'; its data sets are ab, acre"),
        ("gym:", r"'gym:' names no task; write gym:NAME"),
        ("gym:countdown{min_numbers:3", r"names no task; write gym:NAME"),
        ("gym:countdown{terms:3}", r"no setting 'terms'; its settings are min_numbers, max_numbers"),
        ("gym:countdown{seed:3}", r"no setting 'seed'"),
        ("gym:countdown{min_numbers}", r"min_numbers takes no single value.* written key:value"),
        ("gym:countdown{operators:+}", r"operators takes no single value"),
        ("gym:countdown{min_numbers:x}", r"min_numbers is 'x'; give a whole number"),
        ("gym:countdown{shuffle:1}", r"shuffle is '1'; give true or false"),
        ("gym:countdown{min_numbers:9}", r"refuses its settings \(max_numbers must be >= min_numbers\)"),
        ("gym:composite", r"refuses its settings \(Must specify at least one dataset\)"),
    ],
)
def test_a_name_that_is_none(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        get(name)


def test_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"need the package reasoning-gym; pip install 'remask\[gym\]'"):
        get("gym:gcd")


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was read of the package is read again, before and after."""
    gym.data_sets.cache_clear()
    yield
    gym.data_sets.cache_clear()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gym:gcd", r"not a generated source; write .*gym:<name>\[\+<name>\]:<rows>\[:<seed>\]"),
        ("gym:gcd:0", r"not a generated source"),
        ("gym:rush_hour:2", r"come without an answer: .*remask rl or remask eval"),
        pytest.param(
            *("gym:tower_of_hanoi{max_disks:3}:500", r"no more distinct train problems after \d+; ask for fewer"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_source_that_gives_no_rows(source: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        generated_examples(source, split="train", prompt_style="compact")


def test_no_pairs_are_made() -> None:
    with pytest.raises(UserError, match=r"makes no wrong answers; give a file of pairs"):
        generated_examples("gym:gcd:2", split="train", prompt_style="compact", wrong=True)


ATTACKS = (
    "__import__('os').mkdir('{place}')",
    'sin(\'__import__("os").mkdir("{place}")\')',
    "[__import__('os').mkdir('{place}')]",
    "[c for c in [exec('import os; os.mkdir(\"{place}\")')]]",
    "().__class__.__base__.__subclasses__()",
    "exit()",
)


@pytest.mark.parametrize("name", EVALUATED)
def test_no_answer_runs_code(name: str, tmp_path: Path) -> None:
    """Each is scored as an answer that is no answer; the first would make a folder in the package alone."""
    task, (problem,) = some(f"gym:{name}", 1)
    nothing = package_score(task, problem, "no answer at all")
    for attack in ATTACKS:
        answer = attack.replace("{place}", str(tmp_path / "made"))
        assert task.grade(problem, f"<answer>{answer}</answer>").score == nothing, attack
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_an_answer_that_never_ends_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "SCORER", Scorer(seconds=0.7, patience=60.0))
    task = task_of("gym:countdown")
    problem = task.problem("12?", "3*4", json.dumps({"numbers": [3, 4], "target": 12}))
    assert task.grade(problem, "<answer>9**9**9**9</answer>").score == 0
    assert task.grade(problem, "<answer>" + "(" * 50_000).score in (0.0, 0.01)
    assert task.grade(problem, "<answer>4*3</answer>").score == 1


@pytest.mark.parametrize("text", ["1 + 2*(3 - 4)/5", "x**2/3 + C", "sin(x)*exp(2x)", "-3.5", "x^2", "2*asin(x)", "5!"])
def test_arithmetic_is_harmless(text: str) -> None:
    assert harmless(text)


@pytest.mark.parametrize(
    "text",
    ["x.y", "1 .real", "x . y", "'a'", "f'{x}'", "open(x)", "eval(x)", "__import__", "ｅval(x)", "a:=1", "x[0]", "\\"],
)
def test_all_else_is_not(text: str) -> None:
    assert not harmless(text)


@pytest.mark.parametrize(
    "value",
    [{"a": (1, (2, "x")), "b": [None, True, 1.5]}, {1: {"x": (3,)}, (1, 2): []}, {"s": {1, 2}}, {"__tuple__": [1]}, {}],
)
def test_what_was_packed_is_unpacked(value: Any) -> None:
    assert unpacked(json.loads(json.dumps(packed(value)))) == value
