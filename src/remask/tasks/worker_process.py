"""The process that a `worker.Worker` asks: a line of JSON in, a line of JSON out. It imports nothing of Remask.

Its arguments are the kind of question (`KINDS`) and the processor time that each may take. That time runs out in
SIGPROF, which ends the process: no computation, in Python or below, can hold it. A question that raises is answered 0.

Some of reasoning-gym's verifiers evaluate the answer as Python. Here they evaluate literals and arithmetic only
(`harmless`), and read anything else as what cannot be evaluated.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import json
import logging
import random
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 4 << 30
ARITHMETIC = re.compile(r"[\w\s+\-*/%^!|&~<>().,]*")
NAME = re.compile(r"(?<!\w)[^\W\d]\w*")
ATTRIBUTE = re.compile(r"\.\s*[^\W\d]|(?<!\w)[^\W\d]\w*\s*\.")
TRIGONOMETRIC = ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh")
FURTHER = ("exp", "log", "ln", "sqrt", "abs", "Abs", "factorial", "erf", "pi", "oo", "Rational", "Integer", "Integral")
GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "mu", "phi", "omega")
FUNCTIONS = frozenset([*TRIGONOMETRIC, *(f"a{name}" for name in TRIGONOMETRIC), *FURTHER, *GREEK])
"""The names of more than one letter that an evaluated answer may hold."""


def main(kind: str, seconds: float) -> None:
    """Answer questions on stdin, one a line, until it ends; `seconds` bound each (0: no bound)."""
    out, sys.stdout = sys.stdout, sys.stderr
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    start, answer = KINDS[kind]
    start()
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        limit(seconds)
        try:
            said = answer(*json.loads(line))
        except Exception:
            said = 0
        limit(0)
        print(json.dumps(said), file=out, flush=True)


def limit(seconds: float) -> None:
    """End the process after that much processor time; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def verified(reference: str, completion: str) -> int:
    """Return 1 where math-verify finds the reference's answer in a completion, else 0."""
    from math_verify import parse, verify

    # Its own timeouts are signals that it may swallow.
    gold = parse(f"${reference}$", parsing_timeout=None)
    found = parse(completion, parsing_timeout=None)
    return int(bool(gold and found and verify(gold, found, timeout_seconds=None)))


@functools.lru_cache(maxsize=64)
def data_set(name: str, settings: str, seed: int) -> Any:
    """Return reasoning-gym's data set of that name, with settings (JSON) and seed."""
    from reasoning_gym.factory import DATASETS

    kind, config = DATASETS[name]
    return kind(config=config(**json.loads(settings), seed=seed))


def scored(name: str, settings: str, question: str, reference: str | None, metadata: str, answer: str | None) -> float:
    """Return the score that reasoning-gym gives an answer to a problem."""
    entry = {"question": question, "answer": reference, "metadata": unpacked(json.loads(metadata))}
    return float(data_set(name, settings, 0).score_answer(answer, entry))


def drawn(name: str, settings: str, seed: int, first: int, last: int) -> list[list[str | None]]:
    """Return (question, answer, metadata) of the problems numbered `first` to `last` - 1 of a data set; those that it
    fails to make are left out.
    """
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    data, found = data_set(name, settings, seed), []
    for number in range(first, min(last, len(data))):
        with contextlib.suppress(Exception):
            entry = data[number]
            answer = None if entry["answer"] is None else str(entry["answer"])
            found.append([entry["question"], answer, json.dumps(packed(entry["metadata"]))])
    return found


def packed(value: Any) -> Any:
    """Return a value as JSON can hold it: tuples and mappings with keys that are no text are marked as such."""
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: packed(inner) for key, inner in value.items()}
        return {"__map__": [[packed(key), packed(inner)] for key, inner in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [packed(inner) for inner in value]}
    if isinstance(value, list):
        return [packed(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return {"__set__": sorted((packed(inner) for inner in value), key=repr)}
    return value.tolist() if hasattr(value, "tolist") else value


def unpacked(value: Any) -> Any:
    """Return what `packed` was given."""
    if isinstance(value, list):
        return [unpacked(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "__map__" in value:
        return {unpacked(key): unpacked(inner) for key, inner in value["__map__"]}
    if "__tuple__" in value:
        return tuple(unpacked(inner) for inner in value["__tuple__"])
    if "__set__" in value:
        return {unpacked(inner) for inner in value["__set__"]}
    return {key: unpacked(inner) for key, inner in value.items()}


def harmless(text: str) -> bool:
    """Return whether a text is arithmetic: numbers, operators, brackets, letters and functions of mathematics. It holds
    no quotes, no attributes and no other names, so that evaluating it reaches nothing.
    """
    return bool(
        ARITHMETIC.fullmatch(text)
        and not ATTRIBUTE.search(text)
        and all(len(name) == 1 or name in FUNCTIONS for name in NAME.findall(text))
    )


def guard() -> None:
    """Put evaluation that refuses what is not harmless in the place of the one that reasoning-gym uses."""
    import reasoning_gym
    import sympy
    from sympy.parsing import sympy_parser

    parse = sympy_parser.parse_expr

    def parse_arithmetic(text: str, *args: Any, **kwargs: Any) -> Any:
        if not harmless(text):
            raise ValueError("not arithmetic")
        return parse(text, *args, **kwargs)

    def evaluate(text: str) -> Any:
        return builtins.eval(text, {"__builtins__": {}}) if harmless(text) else ast.literal_eval(text.strip())

    sympy.parse_expr = parse_arithmetic  # sympy itself uses the module's, on texts of its own
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{reasoning_gym.__name__}."):
            module.__dict__["eval"] = evaluate
            if module.__dict__.get("parse_expr") is parse:
                module.__dict__["parse_expr"] = parse_arithmetic


KINDS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "math-verify": (lambda: verified("1", "1"), verified),
    "gym-score": (guard, scored),
    "gym-problems": (lambda: importlib.import_module("reasoning_gym"), drawn),
}
"""Kind of question → what is done before the first one, and what answers it."""


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
