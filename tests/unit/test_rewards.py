"""Rewards: the built-in functions by hand, functions of a user's own, what is refused, and what a bad value does."""

from __future__ import annotations

import functools
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remask.errors import UserError
from remask.rl.completions import Batch
from remask.rl.rewards import Completion, Reward, Scores, parse_rewards, refuse_missing_columns, score
from remask.sandbox import Limits, Outcome, Program, Sandbox
from remask.tasks import TASKS, Countdown, Gsm8k, HumanEval, Math500, Problem, Sudoku, Task, get

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("REMASK_REQUIRE_SANDBOX") != "1",
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)

PUZZLE = Problem("sudoku", "sudoku:hand", {"puzzle": "0034341221434321", "solution": "1234341221434321"})
THREE = Problem("countdown", "countdown:hand", {"numbers": [3, 5, 7], "target": 26})
APPLES = Gsm8k().problem("How many apples?", 12.0)
HALF_OF = Math500().problem("What is a half?", r"\frac{1}{2}")
ADD = Problem(
    "humaneval",
    "humaneval:hand",
    {
        "task_id": "HumanEval/900",
        "prompt": "def add(a, b):\n    '''The sum.'''\n",
        "name": "add",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n",
    },
)
PROBLEMS = {"sudoku": PUZZLE, "countdown": THREE, "gsm8k": APPLES, "math": HALF_OF, "math500": HALF_OF}
PROBLEMS |= {"countdown4": THREE, "countdown5": THREE, "humaneval": ADD, "humaneval_plus": ADD}
PROBLEMS |= {"mbpp": ADD, "mbpp_plus": ADD}
PROBLEMS |= {
    name: get(name).read({"question": "1+1?", "answer": "2"})
    for name in ("match", "match_exact", "match_numeric", "match_regex")
}


def answer(text: str, task: Task | None = None, problem: Problem | None = None, **columns: Any) -> Completion:
    return Completion("What?", text, len(text), True, columns, task, problem)


def scores_of(names: Sequence[str], completions: Sequence[Completion], **options: Any) -> Scores:
    weights, on_bad = options.pop("weights", None), options.pop("on_bad", "error")
    return score(parse_rewards(names, weights, canvas=20), completions, on_bad=on_bad, **options)


def same(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes a file of functions into the current folder, and gives the name `file.py:function`."""
    monkeypatch.chdir(tmp_path)
    path, known = list(sys.path), set(sys.modules)

    def write(body: str, function: str = "reward", file: str = "own_functions.py") -> str:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(body)
        return f"{file}:{function}"

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# ---- the form of answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "quarters"),
    [
        ("a1=1\n<answer>1234 3412 2143 4321</answer>", 4),
        ("<answer>wrong, but well put</answer> \n<|eot_id|><|endoftext|>", 4),
        ("<answer>1234</answer> and more", 3),
        ("<answer></answer>", 3),
        ("<answer> \n<|eot_id|></answer>", 3),
        (r"<answer>\boxed{ }</answer>", 3),
        ("<answer>1234", 1),  # one opening tag
        ("1234</answer>", 0),  # it closes nothing
        ("</answer>1234<answer>", 1),
        ("<answer>1</answer><answer>2</answer>", 0),
        ("<answer><answer>1234</answer>", 2),  # closed once, nothing after
        ("<answer>1234</answer></answer>", 1),
        ("1234341221434321", 0),
        ("", 0),
    ],
)
def test_the_form_of_a_tagged_answer(text: str, quarters: int) -> None:
    assert Sudoku().format(PUZZLE, text) == quarters / 4
    assert scores_of(["format"], [answer(text), answer(text, Sudoku(), PUZZLE)]).total == [quarters / 4] * 2


@pytest.mark.parametrize(
    ("text", "fifths"),
    [
        ("3*7=21 21+5=26\n<answer>(3*7)+5</answer>", 5),  # no words, no box
        (r"Three sevens. <answer>\boxed{3*7+5}</answer>", 5),
        ("Three sevens. <answer>3*7+5</answer>", 4),  # `read_expression` does not read it
        ("<answer></answer>", 3),
        ("<answer>3*7+5", 1),
        ("", 0),
    ],
)
def test_countdown_wants_a_box_where_there_are_words(text: str, fifths: int) -> None:
    assert Countdown().format(THREE, text) == fifths / 5


@pytest.mark.parametrize(
    ("text", "sixths"),
    [
        (r"<reasoning>2 × 6</reasoning><answer>\boxed{12}</answer>", 6),
        ("<reasoning>2 × 6</reasoning>\n<answer>\n\\boxed{\\frac{1}{2}}\n</answer><|eot_id|>", 6),
        (r"<reasoning>2 × 6</reasoning><answer>12</answer>", 5),
        (r"<reasoning>2 × 6</reasoning><answer>$\boxed{12}$</answer>", 5),
        (r"<reasoning>2 × 6</reasoning><answer>\boxed{12} or \boxed{13}</answer>", 5),
        (r"<reasoning>2 × 6</reasoning><answer>\boxed{12</answer>", 5),
        (r"<reasoning>2 × 6</reasoning><answer>\boxed{}</answer>", 4),
        (r"<answer>\boxed{12}</answer>", 5),
        (r"<reasoning> </reasoning><answer>\boxed{12}</answer>", 5),
        (r"<reasoning>2 × 6<answer>\boxed{12}</answer>", 5),
        (r"<reasoning>2</reasoning><reasoning>6</reasoning><answer>\boxed{12}</answer>", 5),
        (r"<answer>\boxed{12}</answer><reasoning>2 × 6</reasoning>", 4),
        (r"<reasoning>2 × 6</reasoning>\boxed{12}", 1),
        (r"\boxed{12}", 0),
    ],
)
def test_mathematics_wants_reasoning_and_a_box(text: str, sixths: int) -> None:
    assert Gsm8k().format(APPLES, text) == Math500().format(HALF_OF, text) == pytest.approx(sixths / 6)


@pytest.mark.parametrize(
    ("text", "quarters"),
    [
        ("```python\ndef add(a, b): return 0\n```", 4),
        ("Here it is.\n```python\ndef add(a, b): return 0\n```\nIt adds.", 4),
        ("```python\ndef add(a, b): return 0\n```<|eot_id|>```", 4),
        ("```python\ndef add(a, b): return 0", 3),
        ("```\ndef add(a, b): return 0\n```", 3),
        ("```python\nprint(1)\n```", 3),
        ("```python\ndef add(a, b): return 0\n```\n```python\nadd(1, 2)\n```", 2),
        ("```", 1),
        ("def add(a, b): return 0", 0),
        ("", 0),
    ],
)
def test_code_wants_one_block(text: str, quarters: int) -> None:
    assert HumanEval().format(ADD, text) == quarters / 4


NEAR_MISSES = st.lists(
    st.sampled_from(
        [
            "<answer>",
            "</answer>",
            "<reasoning>",
            "</reasoning>",
            r"\boxed{",
            r"\boxed ",
            r"\fbox",
            "{",
            "}",
            "```python",
            *("```", "\n", " ", "def add(a, b):", "12", "x", "<|eot_id|>", "<|end|>", "\x00", "\ud800", "=", "*", "$"),
        ]
    ),
    max_size=20,
).map("".join)


@given(text=st.text() | NEAR_MISSES)
@settings(deadline=None, max_examples=300)
def test_any_text_has_a_form(text: str) -> None:
    for name in TASKS:
        kept = get(name).format(PROBLEMS[name], text)
        assert 0 <= kept <= 1
        assert kept == get(name).format(PROBLEMS[name], text)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["<answer>", "</answer>", r"\boxed{", "}", "```\n", "<|", "<|a", "<reasoning>"])
def test_the_form_of_a_long_text_takes_no_time(part: str) -> None:
    for name in TASKS:
        assert 0 <= get(name).format(PROBLEMS[name], "<answer>" + part * 100_000 + "</answer>") <= 1


# ---- the built-in functions ------------------------------------------------------------------------------------------


def test_task_and_correct_by_hand() -> None:
    task = Countdown()
    completions = [
        answer("<answer>3*7+5</answer>", task, THREE),
        answer("<answer>3*5+7</answer>", task, THREE),  # the right numbers, 22
        answer("<answer>26</answer>", task, THREE),
        answer("<answer>3*7+5</answer>"),  # of no task
    ]
    scores = scores_of(["task", "correct"], completions, weights=[1, 0.5])
    assert same(scores.by_function["task"], [1, 0.1, 0, math.nan])
    assert same(scores.by_function["correct"], [1, 0, 0, math.nan])
    assert same(scores.total, [1.5, 0.1, 0, math.nan])
    assert scores.none == {"task": 1, "correct": 1}
    assert scores.faults == []


def test_tasks_may_be_mixed() -> None:
    sudoku, countdown = Sudoku(), Countdown()
    grid = answer("<answer>1234 3412 2143 4321</answer>", sudoku, PUZZLE)
    sum_ = answer("<answer>3*5+7</answer>", countdown, THREE)
    assert scores_of(["task"], [grid, sum_, answer(""), grid, sum_]).by_function["task"][3:] == [1, 0.1]


@pytest.mark.parametrize(
    ("name", "tokens", "value"),
    [
        ("length", 0, 1.0),
        ("length", 5, 0.75),
        ("length", 20, 0.0),
        ("length:12", 1, 1.0),
        ("length:12", 12, 1.0),
        ("length:12", 14, 0.75),
        ("length:12", 20, 0.0),
        ("length:12", 23, 0.0),
        ("length:0", 5, 0.75),
    ],
)
def test_length_by_hand(name: str, tokens: int, value: float) -> None:
    assert scores_of([name], [Completion("", "text", tokens, False)]).total == [value]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("share:1", "1213", 0.5),
        ("share:ab", "ab-ab-", 4 / 6),
        ("share:aa", "aaa", 2 / 3),
        ("share::", "a:b:", 0.5),
        ("share:1", "", 0.0),
        ("share:1", "234", 0.0),
    ],
)
def test_share_by_hand(name: str, text: str, value: float) -> None:
    assert scores_of([name], [answer(text)]).total == [pytest.approx(value)]


BUILT_IN = ["task", "correct", "format", "length", "length:7", "share:1"]


@given(st.lists(st.tuples(NEAR_MISSES, st.integers(0, 20), st.sampled_from(["sudoku", "countdown", None])), max_size=6))
@settings(deadline=None, max_examples=60)
def test_a_batch_is_scored_as_its_completions_are_alone(rows: list[tuple[str, int, str | None]]) -> None:
    tasks = {"sudoku": Sudoku(), "countdown": Countdown()}
    completions = [
        Completion("", text, tokens, tokens < 20, {}, tasks[name] if name else None, PROBLEMS[name] if name else None)
        for text, tokens, name in rows
    ]
    together = scores_of(BUILT_IN, completions)
    alone = [scores_of(BUILT_IN, [one]) for one in completions]
    assert same(together.total, [one.total[0] for one in alone])
    for name in BUILT_IN:
        assert same(together.by_function[name], [one.by_function[name][0] for one in alone])
        assert together.none[name] == sum(one.none[name] for one in alone)


def test_scores_are_the_same_in_any_thread() -> None:
    tasks: list[tuple[Task, Problem]] = [(Sudoku(), PUZZLE), (Countdown(), THREE), (Math500(), HALF_OF)]
    texts = [r"<answer>\boxed{\frac12}</answer>", "<answer>3*7+5</answer>", "<answer>1234 3412 2143 4321</answer>", ""]
    completions = [answer(text, *one) for text in texts for one in tasks]
    expected = scores_of(["task", "format"], completions)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scores_of(["task", "format"], completions), range(8)))
    assert found == [expected] * 8


# ---- code -----------------------------------------------------------------------------------------------------------


class FakeSandbox(Sandbox):
    """Passes programs that say `right`, and counts how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def run_all(self, programs: Sequence[Program], **options: Any) -> list[Outcome]:
        self.calls.append(len(programs))
        return [Outcome("passed" if "right" in one.source else "failed", {"tests": (1, 2)}) for one in programs]


def test_programs_run_once_and_together() -> None:
    sandbox = FakeSandbox()
    task = HumanEval(sandbox)
    completions = [answer(f"```python\ndef add(a, b): {body}\n```", task, ADD) for body in ("right", "wrong", "right")]
    scores = scores_of(["task", "correct", "format"], completions)
    assert sandbox.calls == [3]
    assert scores.by_function == {"task": [1, 0.5, 1], "correct": [1, 0, 1], "format": [1, 1, 1]}


@needs_bubblewrap
def test_programs_are_scored_by_the_sandbox() -> None:
    task = HumanEval(Sandbox(Limits(wall_seconds=10, cpu_seconds=8), workers=2))
    bodies = ["return a + b", "return 0", "raise SystemExit"]
    completions = [answer(f"```python\ndef add(a, b): {body}\n```", task, ADD) for body in bodies]
    with ThreadPoolExecutor(1) as pool:
        scores = pool.submit(scores_of, ["task"], completions).result()
    assert scores.total == [1, 0.5, 0]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("name", ["task", "correct"])
def test_programs_without_a_sandbox_are_the_tasks_own_error(name: str, on_bad: str) -> None:
    completions = [answer("```python\ndef add(a, b): return 0\n```", HumanEval(), ADD)]
    with pytest.raises(UserError, match=r"^humaneval: running generated code is off; --allow-code-execution$"):
        scores_of([name], completions, on_bad=on_bad)
    assert scores_of(["format"], completions).total == [1]


# ---- a user's own ---------------------------------------------------------------------------------------------------


def test_a_function_gets_the_columns_it_names(own: Callable[..., str]) -> None:
    name = own(
        "def reward(completions, level, ended):\n    return [len(c) + (l or 0) for c, l in zip(completions, level)]"
    )
    completions = [answer("ab", level=10, other=1), answer("abc", other=2)]
    assert scores_of([name], completions).total == [12, 3]


def test_a_function_of_any_columns_gets_all(own: Callable[..., str]) -> None:
    name = own(
        "seen = []\ndef reward(prompts, completions, **columns):\n"
        "    seen.append((prompts, completions, columns))\n    return [1.0] * len(prompts)"
    )
    completions = [
        Completion("p1", "c1", 4, True, {"level": 1, "tokens": "a column of the data's"}),
        Completion("p2", "c2", 20, False, {"kind": "x"}),
    ]
    assert scores_of([name], completions, columns=["further"]).total == [1, 1]
    module = sys.modules[str(Path("own_functions.py").resolve())]
    assert module.seen == [
        (
            ["p1", "p2"],
            ["c1", "c2"],
            {"tokens": [4, 20], "ended": [True, False], "further": [None] * 2, "level": [1, None], "kind": [None, "x"]},
        )
    ]


def test_a_column_that_nobody_has_is_an_error_unless_it_may_be_missing(own: Callable[..., str]) -> None:
    name = own("def reward(completions, level): return [float(l is None) for l in level]")
    for on_bad in ("error", "skip"):
        with pytest.raises(
            UserError, match=r"own_functions\.py:reward: .* takes level, which no row has.*prompts, comp"
        ):
            scores_of([name], [answer("a", grade=1)], on_bad=on_bad)
    assert scores_of([name], [answer("a")], columns=["level"]).total == [1]
    name = own("def reward(completions, level=None): return [float(level is None)] * len(completions)", file="b.py")
    assert scores_of([name], [answer("a")]).total == [1]


def test_functions_are_found_as_modules_files_and_attributes(own: Callable[..., str], tmp_path: Path) -> None:
    body = "import helper_of_own\nclass Kind:\n    @staticmethod\n"
    body += "    def reward(completions): return [2] * len(completions)"
    own("VALUE = 3", file="helper_of_own.py")
    own(body, file="module_of_own.py")
    own("", file="package_of_own/__init__.py")
    own("def reward(completions): return [4] * len(completions)", file="package_of_own/inner.py")
    own(body, file="folder/file.py")
    own("VALUE = 5", file="folder/beside.py")
    own("import beside\ndef reward(completions): return [beside.VALUE] * len(completions)", file="folder/other.py")
    names = ["module_of_own:Kind.reward", "package_of_own.inner:reward", "folder/file.py:Kind.reward"]
    names += [f"{tmp_path}/folder/other.py:reward"]
    assert list(scores_of(names, [answer("")]).by_function.values()) == [[2], [4], [2], [5]]


def test_two_functions_of_a_file_share_it(own: Callable[..., str]) -> None:
    name = own("calls = []\ndef reward(completions):\n    calls.append(1)\n    return [len(calls)]\nother = reward")
    own(Path("own_functions.py").read_text())
    assert scores_of([name, name.replace("reward", "other")], [answer("")]).total == [3]


def test_any_callable_will_do(own: Callable[..., str]) -> None:
    name = own(
        "import functools\n"
        "def by(factor, completions): return [factor * len(c) for c in completions]\n"
        "reward = functools.partial(by, 2)\n"
        "class Judge:\n    def __call__(self, completions): return [3] * len(completions)\n"
        "judge = Judge()\n"
        "short = lambda completions, *rest, limit=5: [float(len(c) < limit) for c in completions]"
    )
    names = [name, name.replace(":reward", ":judge"), name.replace(":reward", ":short")]
    assert list(scores_of(names, [answer("abc")]).by_function.values()) == [[6], [3], [1]]


# ---- names and weights that are refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], None, r"^rewards\.functions: no reward function; name one or more of task, correct, format"),
        (["task", "task"], None, r"task is named twice"),
        (["task", "format"], [1.0], r"^rewards\.weights: 1 weights for 2 functions; give one for each"),
        (["task"], [1.0, 2.0], r"2 weights for 1 functions"),
        (["task"], [], r"0 weights for 1 functions"),
        (["task", "format"], [1.0, math.nan], r"the weight of format is nan; give a finite number"),
        (["task"], [math.inf], r"the weight of task is inf"),
        (["task", "format"], [0.0, 0], r"every weight is 0"),
        (["formt"], None, r"unknown reward function 'formt'; did you mean 'format'\? there are task, correct"),
        (["accuracy"], None, r"unknown reward function 'accuracy'; there are task, correct, format, length"),
        ([""], None, r"unknown reward function ''"),
        (["length:"], None, r"^length:: '' is not a number of tokens below the canvas' 20; write length:<n>"),
        (["length:-1"], None, r"'-1' is not a number of tokens"),
        (["length:1.5"], None, r"'1\.5' is not a number of tokens"),
        (["length:20"], None, r"'20' is not a number of tokens below the canvas' 20"),
        (["share:"], None, r"^share:: no text to find; write share:<text>"),
        (["share"], None, r"^share: no text to find; write share:<text>"),
        (["lenght:7"], None, r"there is no module lenght; did you mean 'length'\? run where it is, install it"),
        (["no_module_of_this_name:f"], None, r"there is no module no_module_of_this_name; run where it is"),
        (["json.no_such:f"], None, r"json\.no_such:f: there is no module json\.no_such"),
        (["json:dupms"], None, r"^json:dupms: there is no dupms in json; did you mean 'dumps'\?"),
        (["json:f"], None, r"there is no f in json; its functions are .*dumps"),
        (["json:decoder"], None, r"json:decoder: it is a module, not a function"),
        (["json:JSONDecoder"], None, r"it is a class, not a function"),
        (["math:sqrt"], None, r"its parameters x cannot be given by name; define it as reward\(prompts, completions"),
        (["json:"], None, r"not a reward function; write module:function or file\.py:function"),
        ([":dumps"], None, r"not a reward function"),
        (["a b:c"], None, r"'a b' is no module"),
        (["a/b:c"], None, r"'a/b' is no module; write module:function or file\.py:function"),
        (["nowhere/x.py:f"], None, r"no such file: /.*nowhere/x\.py"),
        (["rewards.py"], None, r"unknown reward function 'rewards\.py'; there are .*file\.py:function"),
    ],
)
def test_bad_names_and_weights(names: list[str], weights: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_rewards(names, weights, canvas=20)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import no_such_library", r"cannot be imported \(ModuleNotFoundError: No module named 'no_such_library'\)"),
        ("1 / 0", r"cannot be imported \(ZeroDivisionError: division by zero\); run it with Python"),
        ("def reward(:", r"cannot be imported \(SyntaxError: .*line 1\)"),
        ("raise SystemExit(3)", r"cannot be imported \(SystemExit: 3\)"),
        ("reward = 3", r"it is a int, not a function"),
        ("def rewards(): pass", r"there is no reward in .*did you mean 'rewards'\?"),
        ("def _f(): pass", r"it defines no function"),
        ("async def reward(completions): return [1]", r"an async function is not awaited"),
    ],
)
@pytest.mark.parametrize("place", ["broken_module.py:reward", "broken_module:reward"])
def test_files_without_the_function_say_why(own: Callable[..., str], body: str, message: str, place: str) -> None:
    own(body, file="broken_module.py")
    with pytest.raises(UserError, match=message):
        parse_rewards([place], None, canvas=20)


def test_a_file_that_did_not_load_can_be_mended(own: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="cannot be imported"):
        parse_rewards([own("1 / 0")], None, canvas=20)
    assert scores_of([own("def reward(completions): return [1]")], [answer("")]).total == [1]


def test_ctrl_c_while_importing_is_no_mistake(own: Callable[..., str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        parse_rewards([own("raise KeyboardInterrupt")], None, canvas=20)


# ---- values that are none, and bad ones ------------------------------------------------------------------------------


def by(values: Sequence[Any], name: str = "own", weight: float = 1.0) -> Reward:
    """A function that gives the value at the number that a completion's text is, or raises it."""

    def function(batch: Batch) -> list[Any]:
        found = [values[int(one.text)] for one in batch.completions]
        for value in found:
            if isinstance(value, BaseException):
                raise value
        return found

    return Reward(name, weight, function)


def numbered(count: int) -> list[Completion]:
    return [answer(str(number)) for number in range(count)]


def test_none_leaves_a_function_out_of_the_sum() -> None:
    rewards = [by([1, None, None, 4], "a", 2.0), by([None, 3.0, None, 0.5], "b", 10.0)]
    scores = score(rewards, numbered(4), on_bad="error")
    assert same(scores.total, [2, 30, math.nan, 13])
    assert same(scores.by_function["a"], [1, math.nan, math.nan, 4])
    assert same(scores.by_function["b"], [math.nan, 3, math.nan, 0.5])
    assert scores.none == {"a": 2, "b": 2}
    assert scores.faults == []


def test_a_weight_of_zero_or_less() -> None:
    scores = score([by([1.0], "a", 0.0), by([3.0], "b", -0.5)], numbered(1), on_bad="error")
    assert scores.total == [-1.5]
    assert scores.by_function == {"a": [1], "b": [3]}


def test_numbers_of_any_kind_are_numbers() -> None:
    values = [True, 2, 0.5, np.float32(0.25), np.int64(3), np.bool_(True), torch.tensor(4.0), np.array(5), -1]
    scores = score([by(values)], numbered(len(values)), on_bad="error")
    assert scores.total == [1, 2, 0.5, 0.25, 3, 1, 4, 5, -1]
    assert all(type(value) is float for value in scores.total + scores.by_function["own"])


BAD = [
    (math.nan, r"gave nan"),
    (-math.inf, r"gave -inf"),
    (np.float32("inf"), r"gave inf"),
    ("1.0", r"gave a str, which is neither a number nor None,"),
    ([1.0], r"gave a list"),
    (1j, r"gave a complex"),
    (np.ones(1), r"gave a ndarray"),
    (torch.ones(1), r"gave a Tensor"),
    (10**400, r"gave a int that is no number \(int too large to convert to float\)"),
    (1e308, r"gave 1e\+308, which is beyond ±1e\+15 with its weight,"),
    (-2e15, r"gave -2e\+15, which is beyond"),
    (KeyError("level"), r"raised KeyError: 'level' \(test_rewards\.py, line \d+\)"),
    (ZeroDivisionError(), r"raised ZeroDivisionError: ZeroDivisionError"),
]


@pytest.mark.parametrize(("value", "what"), BAD, ids=[what.split(r"\(")[0] for _, what in BAD])
def test_a_bad_value_is_an_error_that_names_its_completion(value: Any, what: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"^own: the reward function {what}.* for the completion '1' of the prompt 'What\?'; mend the function, "
        r"or leave such completions out with --rewards\.on-bad skip$",
    ):
        score([by([1.0, value, 2.0])], numbered(3), on_bad="error")


@pytest.mark.parametrize(("value", "what"), BAD, ids=[what.split(r"\(")[0] for _, what in BAD])
def test_a_bad_value_is_left_out_and_told(value: Any, what: str) -> None:
    scores = score([by([1, 2, None], "a"), by([1.0, value, 2.0], "b")], numbered(3), on_bad="skip")
    assert same(scores.total, [2, math.nan, 2])
    assert same(scores.by_function["a"], [1, 2, math.nan])
    assert same(scores.by_function["b"], [1, math.nan, 2])
    assert scores.none == {"a": 1, "b": 0}
    (fault,) = scores.faults
    assert fault.startswith("b: ")
    assert fault.endswith(" for the completion '1' of the prompt 'What?'")


def test_many_faults_are_counted_and_long_texts_cut() -> None:
    completions = [Completion("p" * 200, "line\n" + "t" * 200, 1, True)] * 9
    scores = score([Reward("own", 1.0, lambda batch: [math.nan] * len(batch.completions))], completions, on_bad="skip")
    assert len(scores.faults) == 6
    assert scores.faults[-1] == "and 4 more"
    assert all(len(fault) < 250 and "\n" not in fault and "…" in fault for fault in scores.faults[:5])


def test_what_raised_for_a_batch_is_asked_one_by_one() -> None:
    asked: list[list[str]] = []

    def fragile(batch: Batch) -> list[float]:
        asked.append([one.text for one in batch.completions])
        if "1" in asked[-1]:
            raise ValueError("no ones")
        return [5.0] * len(asked[-1])

    completions = numbered(4)
    scores = score([Reward("own", 1.0, fragile)], completions, on_bad="skip")
    assert same(scores.total, [5, math.nan, 5, 5])
    assert asked == [["0", "1", "2", "3"], ["0"], ["1"], ["2"], ["3"]]
    asked.clear()
    with pytest.raises(UserError, match=r"raised ValueError: no ones .*'1'") as caught:
        score([Reward("own", 1.0, fragile)], completions, on_bad="error")
    assert asked == [["0", "1", "2", "3"], ["0"], ["1"]]  # no further than the first
    assert isinstance(caught.value.__cause__, ValueError)


def test_columns_stay_when_a_function_is_asked_one_by_one(own: Callable[..., str]) -> None:
    name = own("def reward(completions, level):\n    return [10 / l if l is not None else None for l in level]")
    completions = [answer("a", level=5), answer("b"), answer("c", level=0)]
    scores = scores_of([name], completions, on_bad="skip")
    assert same(scores.total, [2, math.nan, math.nan])
    assert scores.none == {name: 1}
    assert len(scores.faults) == 1
    assert "(own_functions.py, line 2)" in scores.faults[0]


def test_what_fails_only_together_is_told() -> None:
    def alone(batch: Batch) -> list[float]:
        if len(batch.completions) > 1:
            raise RuntimeError("one at a time")
        return [1.0]

    with pytest.raises(
        UserError, match=r"raised RuntimeError: one at a time .* for 3 completions together, and for none"
    ):
        score([Reward("own", 1.0, alone)], numbered(3), on_bad="error")
    scores = score([Reward("own", 1.0, alone)], numbered(3), on_bad="skip")
    assert scores.total == [1, 1, 1]
    assert len(scores.faults) == 1
    assert "together" in scores.faults[0]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ([1.0], r"it returned a list of 1 for 2 completions; return a list with one number or None for each"),
        ([1.0] * 3, r"a list of 3 for 2"),
        ([], r"a list of 0 for 2"),
        (None, r"a NoneType for 2"),
        (1.0, r"a float for 2"),
        ((1.0, 2.0), r"a tuple for 2"),
        (np.ones(2), r"a ndarray for 2"),
        ("ab", r"a str for 2"),
    ],
)
def test_what_is_no_list_of_that_length_is_an_error(on_bad: Any, returned: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        score([Reward("own", 1.0, lambda _: returned)], numbered(2), on_bad=on_bad)


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("as it stands", mend="so")])
def test_these_pass_through(on_bad: Any, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        score([by([1.0, error])], numbered(2), on_bad=on_bad)
    assert caught.value is error


def test_a_function_that_leaves_does_not_end_the_run_without_a_word() -> None:
    rewards = [by([1.0, SystemExit(3)])]
    with pytest.raises(UserError, match="raised SystemExit: 3"):
        score(rewards, numbered(2), on_bad="error")
    assert same(score(rewards, numbered(2), on_bad="skip").total, [1, math.nan])


def test_columns_that_no_prompt_has_are_found_before_anything_is_sampled(own: Callable[..., str]) -> None:
    body = "def reward(completions, gold, hint=None):\n    return [1.0] * len(completions)\n"
    rewards = parse_rewards(["length", own(body)], None, canvas=20)
    refuse_missing_columns(rewards, ["gold", "more"], row="row")
    with pytest.raises(UserError, match=r"takes gold, which no held-out problem has; the columns are hint, prompts"):
        refuse_missing_columns(rewards, ["hint"], row="held-out problem")


def test_no_completions_have_no_scores() -> None:
    rewards = [by([]), Reward("raises", 1.0, functools.partial(max, ()))]
    found = score(rewards, [], on_bad="error")
    assert found == Scores([], {"own": [], "raises": []}, {"own": 0, "raises": 0}, [], found.batch)


def test_a_function_may_change_what_it_is_given(own: Callable[..., str]) -> None:
    body = (
        "def reward(completions, **columns):\n    n = len(completions)\n    completions.clear()\n    return [1.0] * n\n"
    )
    name = own(body + "again = reward")
    assert scores_of([name, name.replace("reward", "again"), "share:a"], [answer("aa")] * 2).total == [3, 3]


# ---- what the manual says --------------------------------------------------------------------------------------------


def test_the_manuals_function_works(own: Callable[..., str], request: pytest.FixtureRequest) -> None:
    page = (request.config.rootpath / "docs" / "rewards.md").read_text()
    body = page.partition("```python\n")[2].partition("```")[0]
    name = own(body, function="near", file="my_rewards.py")
    completions = [answer(r"<answer>\boxed{10}</answer>", Gsm8k(), APPLES, **APPLES.fields), answer("no number here")]
    scores = scores_of([name, "task"], completions, weights=[1.0, 2.0])
    assert same(scores.by_function[name], [1 / 3, math.nan])  # 2 off
    assert scores.total[0] == pytest.approx(1 / 3 + 0.2)
    assert math.isnan(scores.total[1])
