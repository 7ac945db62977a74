"""The four code benchmarks: finding the code, prompts, grades by hand, and the published solutions and wrong ones."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remask.errors import UserError
from remask.sandbox import Limits, Sandbox
from remask.tasks import evalplus
from remask.tasks.base import Grade, Problem
from remask.tasks.code import CodeTask, HumanEval, Mbpp, after_prompt, extract
from remask.tasks.code_plus import HumanEvalPlus, MbppPlus, script

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("REMASK_REQUIRE_SANDBOX") != "1",
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)

HALF = {
    "task_id": "HumanEval/900",
    "prompt": """import math


def floor(x):
    return math.floor(x)


def half(x: int) -> int:
    '''Half of x.'''
""",
    "entry_point": "half",
    "canonical_solution": "    return floor(x / 2)\n",
    "test": """
def check(candidate):
    assert candidate(4) == 2
    assert candidate(5) == floor(2.5)
    assert True
""",
}
HALF_PLUS = HALF | {"base_input": [[4], [5]], "plus_input": [[-3], [10**30], [0]], "atol": 0, "contract": ""}
ADDED = {
    "task_id": 901,
    "source_file": "a notebook",
    "prompt": "Write a function to add two numbers.",
    "code": "import sys\ndef helper(a): return a\ndef sum(a, b):\n    return helper(a) + b",
    "test_imports": ["import math"],
    "test_list": ["assert sum(2, 3) == 5", "assert sum(1, sys.maxsize) == sys.maxsize + 1", "assert sum(0, 0) == 0"],
}
CHAIN = {  # the full release's layout, with a class of the program's own and Windows' line ends
    "task_id": 902,
    "text": "Write a function to find the longest chain of pairs.",
    "code": "class Pair(object):\r\n\tdef __init__(self, a, b):\r\n\t\tself.a = a\r\n\t\tself.b = b\r\n"
    "def longest(arr, n):\r\n\tchain, last = 0, None\r\n\tfor one in sorted(arr, key=lambda p: p.b):\r\n"
    "\t\tif last is None or one.a > last:\r\n\t\t\tchain, last = chain + 1, one.b\r\n\treturn chain\r\n",
    "test_setup_code": "",
    "test_list": [
        "assert longest([Pair(5, 24), Pair(15, 25), Pair(27, 40), Pair(50, 60)], 4) == 3",
        "assert longest(arr=[Pair(1, 2), Pair(3, 4)], n=len([Pair(1, 2)])) == 2",
        "assert not longest([], 0)",
    ],
    "challenge_test_list": ["assert longest([], 0) == 1"],
}
HEIGHT = {
    "task_id": 903,
    "text": "Write a function to calculate the height of a binary tree.",
    "code": "class Node:\n    def __init__(self, data):\n        self.data = data\n        self.left = None"
    "\n        self.right = None\ndef height(node):\n"
    "    return 0 if node is None else 1 + max(height(node.left), height(node.right))",
    "test_setup_code": "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)",
    "test_list": ["assert (height(root)) == 3", "assert (height(root.left)) == 2 ", "assert height(None) == 0"],
    "challenge_test_list": [],
}
DISTANCE = {
    "task_id": 904,
    "text": "Write a function to find a distance.",
    "code": "from math import hypot\ndistance = lambda a, b: hypot(a, b)",
    "test_setup_code": "import math\nSIDES = (3, 4)",
    "test_list": ["assert math.isclose(distance(*SIDES), 5)", "assert distance(0, 0) == 0"],
    "challenge_test_list": [],
}
PAIR_PLUS = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nWrite a function to find what two tuples share.\nassert set(shared((1, 2), (2, 3))) == {2}\n"""\n',
    "entry_point": "shared",
    "canonical_solution": """
def shared(a, b):
    assert isinstance(a, tuple)
    return tuple(x for x in a if x in b)
""",
    "base_input": [[[1, 2], [2, 3]]],
    "plus_input": [[[], []], [[1, 1], [1]], [["a"], ["a", "b"]]],
    "atol": 0,
    "contract": "",
    "assertion": "\nassert set(shared((1, 2), (2, 3))) == {2}\n",
}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    made = Sandbox(Limits(wall_seconds=10, cpu_seconds=8), workers=2)
    made.check()
    return made


def fenced(code: str) -> str:
    return f"Here it is.\n\n```python\n{code}\n```\nIt works."


# --- finding the code ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        (fenced("def half(x):\n    return x // 2"), "def half(x):\n    return x // 2"),
        (
            "```py\ndef half(x): return 1\n```\nor better\n```python\ndef half(x): return 2\n```",
            "def half(x): return 2",
        ),
        ("```python\ndef half(x): return 1\n```\nUse it:\n```python\nprint(half(3))\n```", "def half(x): return 1"),
        ("```\ndef half(x): return 1\n```", "def half(x): return 1"),
        ("Sure:\n```python\ndef half(x):\n    return 1", "def half(x):\n    return 1"),
        (
            "```python\ndef half(x): return 1\n```<|eot_id|>```python\ndef half(x): return 2\n```",
            "def half(x): return 1",
        ),
        ("def half(x): return 1<|endoftext|>garbage", "def half(x): return 1"),
        ("    return x // 2\n```\nThat is all.", "    return x // 2"),
        ("def half(x):\n    return 1\n```\nThat\n```\nx\n```", "def half(x):\n    return 1"),
        ("\n\n    return x // 2\n", "    return x // 2"),
        ("1. So\n   ```python\n   def half(x):\n       return 1\n   ```", "def half(x):\n    return 1"),
        ("```python\n    return x\n```", "    return x"),
        ("```bash\npip install half\n```\n```python\nhalf = lambda x: x\n```", "half = lambda x: x"),
        ("def halfway(x): return 1", "def halfway(x): return 1"),
        ("<|eot_id|>def half(x): return 1", None),
        ("```python\n```", None),
        (" \n ", None),
        ("", None),
    ],
)
def test_the_code_of_a_completion(completion: str, code: str | None) -> None:
    assert extract(completion, "half") == code


@given(st.text(st.sampled_from("`\n \tdefhalf(x):=python<|eot_id|>1."), max_size=80) | st.text())
def test_any_text_has_code_or_none(text: str) -> None:
    code = extract(text, "half")
    assert code is None or code.strip()
    if code is not None:
        assert after_prompt(HALF["prompt"], code, "half")


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("    return x\n\ndef other():\n    pass", "    return x\n"),
        ("    if x:\n        return 1\n    return 2\nprint(half(3))", "    if x:\n        return 1\n    return 2"),
        ("return x", "    return x"),
        ("y = x\n    return y", "    y = x\n    return y"),
        ("    return x\n\n# Explanation", "    return x\n"),
        ("# A comment\n    return x", "    # A comment\n    return x"),
    ],
)
def test_a_continuation_ends_where_the_indentation_does(code: str, kept: str) -> None:
    assert after_prompt(HALF["prompt"], code, "half") == HALF["prompt"] + kept + "\n"


def test_a_function_anew_comes_after_the_prompt() -> None:
    whole = "from __future__ import annotations\nimport re\ndef half(x): return floor(x / 2)"
    program = after_prompt(HALF["prompt"], whole, "half")
    assert program.startswith("from __future__ import annotations\nimport math")
    space: dict[str, Any] = {}
    exec(compile(program, "program", "exec"), space)
    assert space["half"](5) == 2


# --- reading and prompting -------------------------------------------------------------------------------------------


def test_prompts_show_what_the_benchmark_publishes() -> None:
    prompt = HumanEval().prompt(HumanEval().read(HALF), "instruct")
    assert HALF["prompt"].strip() in prompt
    assert "```python" in prompt
    assert "assert" not in prompt
    assert HumanEval().prompt(HumanEval().read(HALF), "compact") == HALF["prompt"]
    for style in ("instruct", "compact"):
        shown = Mbpp().prompt(Mbpp().read(ADDED), style)  # type: ignore[arg-type]
        assert all(text in shown for text in [ADDED["prompt"], *ADDED["test_list"]])
        assert ADDED["code"] not in shown
    plus = MbppPlus().prompt(MbppPlus().read(PAIR_PLUS), "instruct")
    assert "Write a function to find what two tuples share. Your code" in plus
    assert "assert set(shared((1, 2), (2, 3))) == {2}" in plus
    assert '"""' not in plus


def test_the_function_asked_for_is_the_references_even_where_it_is_called_like_a_builtin() -> None:
    fields = Mbpp().read(ADDED).fields
    assert (fields["name"], fields["names"], fields["setup"]) == ("sum", ["sum"], "import sys")


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (HumanEval, HALF),
        (HumanEvalPlus, HALF_PLUS),
        (Mbpp, ADDED),
        (MbppPlus, PAIR_PLUS),
    ],
)
def test_a_row_that_is_none_is_an_error_that_names_it(
    task: type[CodeTask], row: dict[str, Any], tmp_path: Path
) -> None:
    assert task().load(written(tmp_path, [row]))[0].key == f"{task.name}:{row['task_id']}"
    for name in {"task_id", "prompt", "entry_point", "test_list", "code"} & set(row):
        with pytest.raises(UserError, match=rf"rows\.jsonl, line 2.*{name}"):
            task().load(written(tmp_path, [row, {key: value for key, value in row.items() if key != name}]))
    if "code" in row:
        with pytest.raises(UserError, match=r"no function of the reference"):
            task().load(written(tmp_path, [row | {"code": "x = 1"}]))
        with pytest.raises(UserError, match=r"line 1.*not Python"):
            task().load(written(tmp_path, [row | {"code": "def sum(:"}]))
        with pytest.raises(UserError, match=r"line 1"):
            task().load(written(tmp_path, [row | {"test_list": "assert sum(1, 1) == 2"}]))


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_problems_can_be_written_down() -> None:
    for task, row in ((HumanEval, HALF), (HumanEvalPlus, HALF_PLUS), (Mbpp, ADDED), (MbppPlus, PAIR_PLUS)):
        problem = task().read(row)
        assert json.loads(json.dumps(problem.fields)) == problem.fields


# --- grading ---------------------------------------------------------------------------------------------------------


def test_nothing_is_graded_without_a_sandbox() -> None:
    with pytest.raises(UserError, match=r"humaneval: running generated code is off; --allow-code-execution"):
        HumanEval().grade(HumanEval().read(HALF), "    return 1")


@needs_bubblewrap
def test_grades_by_hand(sandbox: Sandbox) -> None:
    task = HumanEval(sandbox)
    problem = task.read(HALF)
    completions = {
        "    return floor(x / 2)": (True, 1.0),
        "return floor(x / 2)": (True, 1.0),
        fenced("def half(x):\n    return x // 2"): (True, 1.0),
        fenced("def half(x):\n    return math.floor(x / 2)"): (True, 1.0),  # the prompt's import
        fenced("def floor(x): return 0\ndef half(x): return 0"): (False, 0.0),  # the tests' floor is their own
        fenced("def half(x): return 2.5"): (False, 0.0),
        "    return x / 2": (False, 0.5),
        "I cannot do that.": (False, 0.0),
        "": (False, 0.0),
        "    return '\udc80'\x00": (False, 0.0),
        "```python\n" + "(" * 5000: (False, 0.0),
    }
    seen: list[int] = []
    grades = task.grade_all([problem] * len(completions), list(completions), on_done=seen.append)
    assert [(grade.correct, grade.score) for grade in grades] == list(completions.values())
    assert [grade.metrics["tests"] for grade in grades] == [score for _, score in completions.values()]
    assert seen[-1] == len(completions)
    assert grades[2].answer == "def half(x):\n    return x // 2"
    assert grades[8] == Grade(False, 0.0, None, {"tests": 0.0})
    assert task.reward([problem], ["    return x / 2"]) == [0.5]


@needs_bubblewrap
def test_mbpp_by_hand(sandbox: Sandbox) -> None:
    task = Mbpp(sandbox)
    right, wrong, part = task.grade_all(
        [task.read(ADDED)] * 3,
        [
            fenced("def sum(a, b): return a + b"),
            "def add(a, b): return a + b",
            "def sum(a, b): return b + (a == 2) * 2",
        ],
    )
    assert (right.correct, right.score) == (True, 1.0)
    assert (wrong.correct, wrong.score) == (False, 0.0)
    assert (part.correct, part.score) == (False, pytest.approx(2 / 3))


@needs_bubblewrap
@pytest.mark.parametrize("row", [CHAIN, HEIGHT, DISTANCE], ids=lambda row: row["text"][19:32])
def test_the_full_release_of_mbpp(row: dict[str, Any], sandbox: Sandbox, tmp_path: Path) -> None:
    """Setup runs before the tests; objects of the program's class stay with the program."""
    task = Mbpp(sandbox)
    (problem,) = task.load(written(tmp_path, [row]))
    assert row["text"] in task.prompt(problem, "instruct")
    assert json.loads(json.dumps(problem.fields)) == problem.fields
    code, name = row["code"], problem.fields["name"]
    completions = [
        fenced(code),
        fenced(code) + "\n```python\nprint(1)\n```",
        code + NOTHING.format(name=name),
        f"{code}\n\nclass Equal:\n    def __eq__(self, other): return True\n    def __bool__(self): return False\n"
        f"def {name}(*arguments, **keywords): return Equal()\n",
        f"def {name}(*arguments, **keywords): raise SystemExit\n",
    ]
    grades = task.grade_all([problem] * len(completions), completions)
    assert [grade.correct for grade in grades] == [True, True, False, False, False]
    assert grades[0].metrics == {"tests": 1.0}


def test_what_is_expected_stays_with_the_tests() -> None:
    fields = Mbpp().read(CHAIN).fields
    assert fields["name"] == "longest"
    assert fields["names"] == ["longest", "Pair"]
    assert fields["asked"] == ["_asked_0", "_asked_1"]
    assert fields["test"] == "assert _asked_0() == 3\nassert _asked_1() == 2\nassert not longest([], 0)"
    assert "== 3" not in fields["beside"]
    assert Mbpp().read(HEIGHT).fields["beside"].startswith(HEIGHT["test_setup_code"])
    assert Mbpp().read(DISTANCE).fields["test"].startswith("import math\nSIDES = (3, 4)\nassert")


@needs_bubblewrap
def test_what_the_setup_imports_is_the_programs_too(sandbox: Sandbox) -> None:
    """As where all of it runs in one place: MBPP's own protocol."""
    task = Mbpp(sandbox)
    assert task.grade(task.read(DISTANCE), "def distance(a, b): return math.hypot(a, b)").correct
    problem = task.read(ADDED | {"code": "def sum(a, b): return a + b", "test_list": ["assert sum(1, 2) == 3"]})
    assert task.grade(problem, "def sum(a, b): return math.floor(a) + b").correct


@needs_bubblewrap
def test_base_and_plus_are_told_apart(sandbox: Sandbox) -> None:
    task = HumanEvalPlus(sandbox)
    problem = task.read(HALF_PLUS)
    completions = [
        "    return floor(x / 2)",
        "    return int(x / 2)",  # -3 and 10**30 are rounded otherwise
        "    return 0",
        "    while x == -3: pass\n    return x // 2",
        "    import os\n    return x // 2 if x > 0 else os._exit(0)",
    ]
    grades = task.grade_all([problem] * 5, completions)
    assert [grade.correct for grade in grades] == [True, False, False, False, False]
    assert [grade.metrics["base"] for grade in grades] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert [grade.metrics["tests"] for grade in grades] == [1.0, 0.8, 0.2, 0.4, 0.4]


@needs_bubblewrap
def test_inputs_get_their_tuples_back_and_order_may_differ(sandbox: Sandbox) -> None:
    task = MbppPlus(sandbox)
    problem = task.read(PAIR_PLUS)
    right, untupled = task.grade_all(
        [problem] * 2,
        [
            "def shared(a, b):\n    assert type(a) is type(b) is tuple\n    return tuple(x for x in a if x in b)",
            "def shared(a, b): return [x for x in a if x in b]",
        ],
    )
    assert right.correct
    assert not untupled.correct


@needs_bubblewrap
def test_the_hubs_layout_is_run_as_it_stands(sandbox: Sandbox) -> None:
    script = (
        "import numpy as np\n\ndef assertion(out, exp, atol):\n    exact = out == exp\n"
        "    if not exact and atol != 0:\n        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
        "    else:\n        assert exact, f'{out} {exp}'\n\n"
    )
    loop = "inputs = [[4], [5], [-3]]\nresults = [2, 2, -2]\nfor inp, exp in zip(inputs, results):\n    assertion("
    indented = "def check(candidate):\n    " + loop.replace("\n", "\n    ")
    human = HumanEvalPlus(sandbox)
    problem = human.read(HALF | {"test": f"{script}{indented}candidate(*inp), exp, 0)\n"})
    right, wrong = human.grade_all([problem] * 2, ["    return x // 2", "    return int(x / 2)"])
    assert (right.correct, right.metrics) == (True, {"tests": 1.0, "base": 1.0})
    assert (wrong.correct, wrong.metrics["base"]) == (False, 0.0)
    row = {
        "task_id": 900,
        "code": "def half(x): return x // 2",
        "prompt": "Halve a number.",
        "source_file": "",
        "test_imports": "[]",
        "test_list": ["assert half(4) == 2"],
        "test": f"{script}{loop}half(*inp), exp, 0)\n",
    }
    mbpp = MbppPlus(sandbox)
    problem = mbpp.read(row)
    assert "assert half(4) == 2" in mbpp.prompt(problem, "instruct")
    right, wrong = mbpp.grade_all([problem] * 2, ["def half(x): return x // 2", "def half(x): return int(x / 2)"])
    assert (right.correct, wrong.correct) == (True, False)


@pytest.mark.parametrize(
    ("name", "given", "out", "expected", "tolerance", "verdict"),
    [
        ("f", [1], 2, 2, 0, True),
        ("f", [1], 2.0, 2, 0, True),
        ("f", [1], 1.0000001, 1.0, 0, False),
        ("f", [1], 1.0000005, 1.0, 1e-6, True),
        ("f", [1], 1, 1.0000005, 1e-6, False),  # another type
        ("f", [1], [1.0000005], [1.0], 1e-6, True),
        ("f", [1], (1.0000005,), [1.0], 1e-6, False),
        ("f", [1], [1.0], [1.0, 1.0], 1e-6, False),
        ("f", [1], ["a"], ["b"], 1e-6, False),
        ("f", [1], float("nan"), float("nan"), 1e-6, False),
        ("f", [1], float("inf"), float("inf"), 1e-6, True),
        ("f", [1], {"a": 1.0000005}, {"a": 1.0}, 1e-6, False),
        ("find_zero", [[-6, 1, 1]], 2.00001, 99, 1e-4, True),
        ("find_zero", [[-6, 1, 1]], 2.1, 2.1, 1e-4, False),
        ("similar_elements", [1], [2, 1, 1], (1, 2), 0, True),
        ("similar_elements", [1], [2], (1, 2), 0, False),
        ("check_str", ["a"], True, object(), 0, True),
        ("check_str", ["a"], object(), object(), 0, True),
        ("check_str", ["a"], None, object(), 0, False),
        ("check_str", ["a"], False, None, 0, True),
        ("check_str", ["a"], "no", None, 0, False),
        ("are_equivalent", [1, 2], "anything", False, 0, True),
        ("sum_div", [7], 0, 1, 0, True),
        ("sum_div", [7], 2, 1, 0, False),
        ("surface_Area", [3, 4], 35, 33, 0, True),  # 9 + 2·3·√(1.5² + 4²) = 34.6
        ("surface_Area", [3, 4], 34, 33, 0, False),
        ("digit_distance_nums", [23, 156], 1 + 3 + 3, 4, 0, True),
        ("digit_distance_nums", [23, 156], 5, 4, 0, False),
    ],
)
def test_evalplus_rules(name: str, given: list[Any], out: Any, expected: Any, tolerance: float, verdict: bool) -> None:
    assert evalplus.agrees(name, given, out, expected, tolerance) is verdict


@pytest.mark.parametrize(
    ("task", "given", "arguments"),
    [
        ("HumanEval/2", [[1]], [[1]]),
        ("Mbpp/2", [[1], [2]], [(1,), (2,)]),
        ("Mbpp/63", [[[1, 2], [3]]], [[(1, 2), (3,)]]),
        ("Mbpp/75", [[[1, 2]], 5], [[(1, 2)], 5]),
        ("Mbpp/106", [[1], [2]], [[1], (2,)]),
        ("Mbpp/115", [[[1, 1], [], {}]], [[{1}, {}, {}]]),
        ("Mbpp/124", ["1", "2+3j"], [1.0, 2 + 3j]),
        ("Mbpp/259", [[[1, 2]], [[3]]], [((1, 2),), ((3,),)]),
        ("Mbpp/278", [[1, [2, [3]]]], [(1, (2, [3]))]),
        ("Mbpp/307", [["a", []], 1, 2], [("a", []), 1, 2]),
        ("Mbpp/580", [[1, [2, [3]]]], [(1, (2, (3,)))]),
        ("Mbpp/722", [{"a": [1, 2]}, 3], [{"a": (1, 2)}, 3]),
        ("Mbpp/3", [[1]], [[1]]),
    ],
)
def test_mbpp_inputs_are_restored(task: str, given: list[Any], arguments: list[Any]) -> None:
    assert repr(evalplus.arguments(task, given)) == repr(arguments)


def test_evalplus_script_stands_alone() -> None:
    space: dict[str, Any] = {}
    exec(compile(script(), "evalplus", "exec"), space)
    assert callable(space["run"])


# --- the published problems ------------------------------------------------------------------------------------------


WRONG = """

_right = {name}
def {name}(*arguments, **keywords):
    value = _right(*arguments, **keywords)
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float, complex)): return value + 1
    if isinstance(value, str): return value + 'x'
    if isinstance(value, (list, tuple)): return value + type(value)(['x'])
    if isinstance(value, dict): return {{**value, 'x': 'x'}}
    if isinstance(value, (set, frozenset)): return value | {{'x'}}
    return 0 if value is None else None
"""
NOTHING = "\n\ndef {name}(*arguments, **keywords): pass\n"


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        return rows
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def spoiled(change: str, solutions: Sequence[str], problems: Sequence[Problem]) -> list[str]:
    return [fenced(code + change.format(name=p.fields["name"])) for code, p in zip(solutions, problems, strict=True)]


@pytest.mark.slow
@needs_bubblewrap
def test_humaneval_takes_all_its_solutions_and_none_of_their_spoiled_forms(shared: Path, sandbox: Sandbox) -> None:
    path = shared / "data" / "humaneval" / "HumanEval.jsonl.gz"
    task, rows = HumanEval(sandbox), rows_of(path)
    problems = task.load(path)
    assert len(problems) == 164
    whole = [row["prompt"] + row["canonical_solution"] for row in rows]
    assert failed(task, problems, [row["canonical_solution"] for row in rows]) == []
    assert failed(task, problems, [fenced(code) for code in whole]) == []
    assert len(failed(task, problems, spoiled(WRONG, whole, problems))) == 164
    assert len(failed(task, problems, spoiled(NOTHING, whole, problems))) == 164


@pytest.mark.slow
@needs_bubblewrap
def test_mbpp_takes_its_solutions_and_none_of_their_spoiled_forms(shared: Path, sandbox: Sandbox) -> None:
    path = shared / "data" / "mbpp" / "sanitized-mbpp.json"
    task = Mbpp(sandbox)
    problems, solutions = task.load(path), [row["code"] for row in rows_of(path)]
    assert len(problems) == 427
    for row, problem in zip(rows_of(path)[::20], problems[::20], strict=True):  # the same in the full release's layout
        full = {"text": row["prompt"], "test_setup_code": "\n".join(row["test_imports"]), "challenge_test_list": []}
        again = task.read(full | {key: row[key] for key in ("task_id", "code", "test_list")})
        assert again == problem
    problems, solutions = problems[::3], solutions[::3]
    assert failed(task, problems, [fenced(code) for code in solutions]) == []
    assert len(failed(task, problems, spoiled(NOTHING, solutions, problems))) == len(problems)


SLOW = {"HumanEval/130", "HumanEval/139", "HumanEval/15"}


@pytest.mark.slow
@needs_bubblewrap
@pytest.mark.parametrize(
    ("kind", "file", "count"), [(HumanEvalPlus, "HumanEvalPlus.jsonl.gz", 164), (MbppPlus, "MbppPlus.jsonl.gz", 378)]
)
def test_evalplus_takes_a_sample_of_its_solutions_and_none_of_their_spoiled_forms(
    kind: type[CodeTask], file: str, count: int, shared: Path, sandbox: Sandbox
) -> None:
    path = shared / "data" / "evalplus" / file
    task = kind(sandbox)
    assert len(task.load(path)) == count
    rows = [row for row in rows_of(path)[:: count // 24] if row["task_id"] not in SLOW]
    problems = [task.read(row) for row in rows]
    solutions = [row["prompt"] + row["canonical_solution"] for row in rows]
    assert failed(task, problems, [fenced(code) for code in solutions]) == []
    assert len(failed(task, problems, spoiled(WRONG, solutions, problems))) == len(problems)


def failed(task: CodeTask, problems: Sequence[Problem], completions: Sequence[str]) -> list[str]:
    grades = task.grade_all(problems, completions)
    return [problem.key for problem, grade in zip(problems, grades, strict=True) if not grade.correct]
