"""Code found in answers: every published solution in the forms that models write, hand-made answers, and any text."""

from __future__ import annotations

import ast
import gzip
import json
import re
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remask.tasks.code_continuation import after_prompt
from remask.tasks.code_extraction import blocks, extract
from remask.tasks.mbpp_tests import asked_of
from remask.tasks.python_code import defines

# ---- the forms that models write ----------------------------------------------------------------------------------

DEMO = "print('all of it works')\nassert 1 + 1 == 3"
WRAPPINGS: dict[str, Callable[[str], str]] = {
    "bare": lambda code: code,
    "python": lambda code: f"```python\n{code}\n```",
    "py": lambda code: f"Sure!\n\n```py\n{code}\n```\nIt works.",
    "Python3": lambda code: f"```Python3\n{code}\n```",
    "no language": lambda code: f"Here you are:\n```\n{code}\n```",
    "title": lambda code: f'```python title="solution.py"\n{code}\n```',
    "tildes": lambda code: f"~~~python\n{code}\n~~~",
    "four backticks": lambda code: f"````python\n{code}\n````",
    "unclosed": lambda code: f"The code:\n```python\n{code}",
    "in a list": lambda code: "1. The code:\n\n" + textwrap.indent(f"```python\n{code}\n```", "   ") + "\n2. Done.",
    "fence behind words": lambda code: f"**Answer:** ```python\n{code}\n```",
    "fence behind code": lambda code: f"```python\n{code.rstrip()}```",
    "opened by the prompt": lambda code: f"{code}\n```\nThat is all.",
    "prose before": lambda code: f"Here is the function. It's what you asked for:\n\n{code}",
    "prose behind": lambda code: f"{code.rstrip()}\n\nThis function doesn't do more (or less) than it should.\nDone\n",
    "prose around": lambda code: f"Solution (simple)\nNote: read it\n\n{code}\n\nComplexity: O(n)\n\nHope it helps!",
    "answer tags": lambda code: f"<reasoning>simple</reasoning>\n<answer>\n{code}\n</answer>",
    "answer tags on the line": lambda code: f"<answer>{code.strip()}</answer>",
    "open answer tag": lambda code: f"<reasoning>I think.\n</reasoning>\n<answer>\n{code}",
    "answer tags and fence": lambda code: f"<answer>\n```python\n{code}\n```\n</answer><|eot_id|><|endoftext|>",
    "code tags": lambda code: f"I would write\n<code>\n{code}\n</code>\nas above.",
    "python tags": lambda code: f"<python>\n{code}\n</python>",
    "begin and done": lambda code: f"[BEGIN]\n{code}\n[DONE]\n\nYou are an expert Python programmer, and here is",
    "done": lambda code: f"{code}\n[DONE]\n\nYou are an expert Python programmer, and here is your task",
    "thought": lambda code: f"<think>\nA draft:\n```python\n{STUBBED}\n```\nNo.\n</think>\n\n```python\n{code}\n```",
    "thought, opened by the prompt": lambda code: f"Let me see.\n{STUBBED}\n</think>\n\n{code}",
    "demonstration in the block": lambda code: f"```python\n{code}\n\n# Try it\n{DEMO}\n```",
    "demonstration in a block": lambda code: f"```python\n{code}\n```\nUse it:\n```python\n{DEMO}\n```",
    "demonstration before": lambda code: f"Run\n```bash\npip install numpy\n```\nand\n```python\n{code}\n```",
    "main part": lambda code: f"{code}\n\nif __name__ == '__main__':\n    n = int(input())\n    print(n)\n",
    "input": lambda code: f"```python\n{code}\n\nn, m = map(int, input('two: ').split())\nprint(n + m)\n```",
    "doctest behind": lambda code: f"```python\n{code}\n\n>>> 1 + 1\n2\n```",
    "windows": lambda code: f"```python\n{code}\n```\nDone.".replace("\n", "\r\n"),
    "blank before the first line": lambda code: " " + code.lstrip("\n"),
    "all indented": lambda code: "Here:\n\n" + textwrap.indent(code, "    ") + "\n\nIt works.",
    "Answer:": lambda code: f"Answer: {code.strip()}",
    "Answer, above": lambda code: f"Answer:\n\n{code}",
    "at Python's prompt": lambda code: "\n".join(
        ("... " if line[:1].isspace() or not line else ">>> ") + line for line in code.strip("\n").split("\n")
    ),
    "end of text": lambda code: f"{code}<|endoftext|>```python\n{STUBBED}\n```",
}
STUBBED = "def stub(x):\n    return 'a draft'"
TYPED = {"at Python's prompt"}
"""Forms that a program of several statements with comments, blank lines or strings between does not survive."""


# ---- hand-made answers --------------------------------------------------------------------------------------------

PROMPT = 'def add(x: int, y: int):\n    """Add two numbers x and y\n    >>> add(2, 3)\n    5\n    """\n'
HEAD = "def add(x, y):\n"
ADD = f"{HEAD}    return x + y"
BLOCK = f"```python\n{ADD}\n```"
WRONG = "def add(x, y):\n    return 0"
IN_TRY = textwrap.indent(ADD, "    ")
WHOLE = {
    "an import that binds the name": "from operator import add",
    "the same in a block": "```python\nfrom operator import add\n```",
    "a lambda": "add = lambda x, y: x + y",
    "a lambda behind words": "Answer: add = lambda x, y: x + y",
    "a lambda in a line of text": "You can use `add = lambda x, y: x + y`.",
    "an object": "class Adder:\n    def __call__(self, x, y):\n        return x + y\n\nadd = Adder()",
    "another function's name": "def plus(x, y):\n    return x + y\nadd = plus",
    "two names at once": "add, sub = (lambda x, y: x + y), (lambda x, y: x - y)",
    "an annotated name": "add: 'callable' = lambda x, y: x + y",
    "either import or definition": f"try:\n    from foo import add\nexcept ImportError:\n{IN_TRY}",
    "a decorator": f"```python\nfrom functools import lru_cache\n\n@lru_cache(maxsize=None)\n{ADD}\n```",
    "a decorator among words": f"So:\nfrom functools import cache\n\n@cache\n# twice\n{ADD}\nBye now.",
    "a demonstration that imports it": f"{BLOCK}\n```python\nfrom solution import add\nprint(add(1, 2))\n```",
    "a signature behind": f"{BLOCK}\nIts signature:\n```python\n{HEAD}    ...\n```",
    "what it prints": f"```python\n{ADD}\n\nadd(1, 2)\n```\nOutput:\n```\n3\n```",
    "a helper in a block before": "```python\nK = 1\ndef helper(a):\n    return a * K\nprint(helper(input()))\n```\n"
    f"```python\n{HEAD}    return helper(x) + helper(y)\n```",
    "a helper in a block behind": f"```python\n{HEAD}    return same(x) + y\n```\n"
    "```python\ndef same(a):\n    return a\n```",
    "a helper below": f"{HEAD}    return same(x) + y\n\ndef same(a):\n    return a\n\nprint(add(1, int(input())))",
    "a table made below": f"{HEAD}    return table[x] + y\n\ntable = {{}}\nfor i in range(9):\n    table[i] = i",
    "imports in a block before": "```python\nimport os\n```\n```python\nfrom __future__ import annotations\n"
    f"{HEAD}    return int(os.path.join(str(x + y)))\n```",
    "a fence in a docstring": f'```python\n{HEAD}    """S.\n\n    ```\n    1\n    ```\n    """\n    return x + y\n```',
    "a fence in a string": f"```python\n{HEAD}    fence = '```python'\n    return x + y\n```\nDone.",
    "a fence in a docstring, no block": f'{HEAD}    """Sum.\n\n```\nadd(1, 2)\n```\n    """\n    return x + y',
    "four backticks around three": f"````python\n{HEAD}    '''\n```\n1\n```\n    '''\n    return x + y\n````",
    "a docstring not indented": f'So:\n\n{HEAD}    """A\n\nIt is "so".\n    """\n    return x + y\n\nIt\'s it.',
    "a draft in its reasoning": f"<reasoning>\n```python\n{WRONG}\n```\n</reasoning>\n<answer>\n{ADD}\n</answer>",
    "a bare draft in its thoughts": f"<think>\n{WRONG}\n</think>\n{ADD}",
    "two answers": f"<answer>{WRONG}</answer> no: <answer>{ADD}</answer>",
    "marks of MBPP with a block": f"[BEGIN]\n{BLOCK}\n[DONE]",
    "marks of tests": f"Answer:\n[PYTHON]\n{ADD}\n[/PYTHON]\n[TESTS]\nassert add(1, 2) == 4\n[/TESTS]",
    "a page's tags": f"<pre><code>\n{ADD}\n</code></pre>",
    "a heading and bullets": f"# Solution\n\n## Code\n{ADD}\n\n### Notes\n* fast\n- O(1)",
    "a main part": f"{ADD}\n\ndef main():\n    print(add(int(input()), 1))\n\nmain()",
    "unit tests": f"{ADD}\nimport unittest\nclass T(unittest.TestCase):\n    pass\nunittest.main()",
    "an exit": f"import sys\n{ADD}\nsys.exit(0)",
    "input before": f"a = int(input('a'))\n{ADD}\nprint(add(a, 1))",
    "an unfinished demonstration": f"```python\n{ADD}\n\nprint(add(1, 2)\n```",
    "tabs among spaces": f"{HEAD}    if x:\n\treturn x + y\n    return y + x",
    "no-break spaces": f"{HEAD}\u00a0\u00a0\u00a0\u00a0return x + y",
    "quoted": "\n".join(f"> {line}" for line in BLOCK.split("\n")),
    "one line": "```python def add(x, y): return x + y```",
    "attributes": f"```{{.python .numberLines}}\n{ADD}\n```",
    "a notebook's commands": f"```python\n!pip install x\n%time 1\n{ADD}\n```",
    "the prompt again": f"{PROMPT}    return x + y\n",
    "a tag in a string": f"{HEAD}    tags = '<answer>', '</answer>', '<think>'\n    return x + y",
}
INSIDE = {
    "as it is": "    return x + y",
    "deeper": "        z = x\n        return z + y",
    "two spaces": "  z = x\n  return z + y",
    "two spaces, the first line lost": "z = x\n  return z + y",
    "a condition, its indentation lost": "if x:\n        return x + y\n    return y + x",
    "all indentation lost": "z = x\nif z:\n    z = z + y\nelse:\n    z = y\nreturn z",
    "words around": "To add:\n\n    return x + y\n\nThat's it.",
    "a test behind": "    return x + y\n\n\ndef test():\n    assert add(1, 2) == 4",
    "a block": "```python\n    return x + y\n```",
    "a name like the function's": "    add = x + y\n    return add",
    "the same without indentation": "add = x + y\nreturn add",
}


def made(code: str) -> dict[str, Any]:
    """What a program binds."""
    space: dict[str, Any] = {"__name__": "program"}
    with warnings.catch_warnings(action="ignore"):
        exec(compile(code, "program", "exec"), space)
    return space


@pytest.mark.parametrize("form", WHOLE)
def test_a_whole_function_is_found(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    code = extract(WHOLE[form], "add")
    assert code is not None
    assert made(code)["add"](2, 3) == 5
    assert made(after_prompt(PROMPT, code, "add"))["add"](2, 3) == 5


@pytest.mark.parametrize("form", INSIDE)
def test_the_inside_of_a_function_is_put_behind_its_prompt(form: str) -> None:
    program = after_prompt(PROMPT, extract(INSIDE[form], "add") or "", "add")
    assert made(program)["add"](2, 3) == 5


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot add.",
        "The sum of x and y is x + y.",
        "```python\ndef sub(x, y):\n    return x - y\n```",
        "```python\nprint(add(2, 3))\n```",
        "def add(x, y):\n    return x +",  # cut short
        "```python\ndef add(x, y):\n    return x + y +\n```",
        "class Solution:\n    def add(self, x, y):\n        return x + y",
    ],
)
def test_what_is_no_solution_is_made_none(answer: str) -> None:
    code = extract(answer, "add")
    assert code is not None
    with pytest.raises((SyntaxError, KeyError, NameError)):
        made(code)["add"](2, 3)


def test_a_class_is_asked_for_beside_the_function() -> None:
    pair = "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
    code = extract(f"def total(p):\n    return p.a + p.b\n\n{pair}\nprint(total(Pair(1, 2)))", "total", "Pair")
    assert code is not None
    space = made(code)
    assert space["total"](space["Pair"](1, 2)) == 3
    assert "print" not in code


def test_blocks_by_hand() -> None:
    found = blocks("a\n```python\nx = '''\n```\n'''\n```\nb\n~~~\nprose here\n~~~\n```py\nz")
    assert [(one.code, one.opening, one.closing) for one in found] == [
        ("x = '''\n```\n'''\n", "```python", "```"),
        ("prose here\n", "~~~", "~~~"),
        ("z", "```py", None),
    ]


# ---- any text -----------------------------------------------------------------------------------------------------

PIECES = ["```", "```python", "~~~", "\n", "\n    ", "def half(x):", "return x", "half", " = ", "'''", '"', "(", ")"]
PIECES += ["<answer>", "</answer>", "<think>", "</think>", "[BEGIN]", "[DONE]", ">>> ", "> ", "`", "@", "import ", "\t"]
PIECES += ["from a ", "lambda x:", "\r\n", "\x00", "\ud800", ": ", "class half:", "x", "#", "\u00a0", "<|eot_id|>"]
PIECES += ["async ", "if x:", "yield x", "global half"]
REPEATED = ["```\n", "```python\ndef half(x):\n", "<answer>half", "<think>\n", "(", "1+", "[\n", "x\n", "'''\n", "@a\n"]
REPEATED += ["def half(\n", "half = (\n", "> half\n", ">>> half\n", "if x:\n", "`half` ", "half: ", "    return x\n"]
REPEATED += [" a\nb\n", "f('''\n", "return half(\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_has_code_or_none(text: str) -> None:
    code = extract(text, "half")
    assert code is None or code.strip()
    if code is not None:
        assert after_prompt("def half(x):\n", code, "half")


@pytest.mark.parametrize("piece", REPEATED)
def test_long_nonsense_is_read_in_time(piece: str) -> None:
    """As long as the longest canvases: some 16,000 characters."""
    text = piece * (16_000 // len(piece))
    started = time.process_time()
    code = extract(text, "half")
    after_prompt("def half(x):\n", code or "x", "half")
    assert time.process_time() - started < 4


# ---- the published solutions --------------------------------------------------------------------------------------


def definition(code: str, name: str) -> str:
    """The last definition of a name, as its syntax tree; blanks in docstrings make no difference."""
    found = [node for node in ast.parse(code).body if getattr(node, "name", None) == name]
    return re.sub(r"(?:\s|\\n)+", " ", ast.dump(found[-1])) if found else ""


@pytest.fixture(scope="module")
def solutions(shared: Path) -> list[tuple[str, str]]:
    """HumanEval's and MBPP's functions and reference solutions."""
    with gzip.open(shared / "data" / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        found = [(row["entry_point"], row["prompt"] + row["canonical_solution"]) for row in map(json.loads, file)]
    for row in json.loads((shared / "data" / "mbpp" / "sanitized-mbpp.json").read_text()):
        name = asked_of(row["code"], "\n".join(row["test_list"]))["name"]
        found += [(name, row["code"].replace("\r\n", "\n"))]
    return found


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("form", WRAPPINGS)
def test_published_solutions_are_found_in_every_form(form: str, solutions: list[tuple[str, str]]) -> None:
    lost = []
    for name, solution in solutions[list(WRAPPINGS).index(form) % 4 :: 4]:
        if form in TYPED and ("\n\n" in solution.strip() or '"""' in solution or "\n#" in solution):
            continue
        code = extract(WRAPPINGS[form](solution), name)
        try:
            assert code is not None
            assert definition(code, name) == definition(solution, name) != ""
            assert callable(made(code)[name])
            assert defines(code, name)
        except Exception as error:
            lost.append(f"{name}: {error!r}\n{code}")
    assert lost == []


@pytest.mark.slow
@pytest.mark.shared
def test_every_continuation_is_put_behind_its_prompt(shared: Path) -> None:
    with gzip.open(shared / "data" / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    forms: dict[str, Callable[[str], str]] = {
        "as it is": lambda body: body,
        "first line not indented": lambda body: body.lstrip(),
        "first line too little": lambda body: "   " + body.lstrip(),
        "not indented": textwrap.dedent,
        "two more": lambda body: textwrap.indent(body, "  "),
        "tabs": lambda body: body.replace("    ", "\t"),
        "windows": lambda body: body.replace("\n", "\r\n"),
        "fenced": lambda body: f"```python\n{body}```",
        "fence closed": lambda body: f"{body}```\n\nIt works.",
        "words behind": lambda body: f"{body}\nIt works.",
        "words before": lambda body: f"The body is\n\n{body}",
        "a demonstration behind": lambda body: f"{body}\nprint('works')\n",
        "a block behind": lambda body: f"{body}\nUse it:\n```python\nprint('works')\n```",
        "answer tags": lambda body: f"<answer>\n{body}</answer>",
        "done": lambda body: f"{body}[DONE]",
    }
    lost = []
    for form, change in forms.items():
        for row in rows:
            name, solution = row["entry_point"], row["prompt"] + row["canonical_solution"]
            code = extract(change(row["canonical_solution"]), name)
            program = after_prompt(row["prompt"], code or "", name)
            try:
                assert definition(program, name) == definition(solution, name)
            except Exception as error:
                lost.append(f"{form}, {name}: {error!r}\n{program}")
    assert lost == []
