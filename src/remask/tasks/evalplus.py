"""EvalPlus's protocol for HumanEval+ and MBPP+. This file's text runs beside the tests, in their box.

The reference solution is run on every input, the program too, and the two must agree:

- exactly (`==`), or, where the problem has a tolerance or the answer is one float or a list or tuple of floats (then
  1e-6, from that input on), with the same type and length and |out - expected| <= tolerance + 1e-7 |expected|;
- `find_zero`: the polynomial's value at the answer is within the tolerance of 0;
- `are_equivalent`: any answer passes; `sum_div`: 0 passes too; `surface_Area`, `digit_distance_nums`: so does the value
  of the task's other reading;
- tasks whose answer is a list in no particular order: as sets;
- tasks that ask whether a string matches: a bool equals whether the reference found a match, any other answer is
  compared by being None or not.

A call may take four times what the reference took and never less than one second; a program that takes longer has
failed and is not asked again.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

Change = Callable[[Any], Any]

SET_EQUAL = {
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
    "intersection_array", "find_dissimilar", "Diff",
}  # fmt: skip
NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}

LEAST_SECONDS = 1.0
REFERENCE_FACTOR = 4.0
RELATIVE = 1e-7
FLOATS = 1e-6

LEFT_OUT = {"Mbpp/255": [[["Dog", "Cat", "CatBird", "Bird", "Fish"], 77]]}
"""The inputs that are not used: this one's answer is 1.7 million tuples of 77 strings, more than a box's memory."""


def listed(change: Change) -> Change:
    """Return a change that changes every item of a list."""
    return lambda values: [change(value) for value in values]


def in_tuple(change: Change) -> Change:
    """Return a change that changes every item and makes a tuple of them."""
    return lambda values: tuple(change(value) for value in values)


def deep_tuple(value: Any) -> Any:
    """Return a value with its lists as tuples, at every depth."""
    return tuple(map(deep_tuple, value)) if isinstance(value, list) else value


def outer_tuple(value: Any) -> Any:
    """Return a list as a tuple, and its items as they are."""
    return tuple(value) if isinstance(value, list) else value


def as_is(value: Any) -> Any:
    """Return the value as it is."""
    return value


RESTORE: list[tuple[set[int], list[Change]]] = [
    # (MBPP's task numbers, what is done to each argument; the last is done to all that follow)
    ({2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809},
     [tuple]),
    ({63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}, [listed(tuple)]),
    ({75, 413, 444, 753}, [listed(tuple), as_is]),
    ({106, 750}, [as_is, tuple]),
    ({115}, [listed(lambda item: set(item) if isinstance(item, list) and item else {})]),
    ({124}, [float, complex]),
    ({250, 307, 405, 446, 617, 720, 763, 808}, [tuple, as_is]),
    ({252}, [complex]),
    ({259, 401, 445}, [in_tuple(tuple)]),
    ({278}, [in_tuple(outer_tuple)]),
    ({580, 615, 791}, [deep_tuple]),
    ({722}, [lambda table: {name: tuple(values) for name, values in table.items()}, as_is]),
]  # fmt: skip
"""The changes that give the inputs of MBPP+ their types back: JSON has no tuple, set or complex number."""


def arguments(task_id: str, given: list[Any]) -> list[Any]:
    """Return one input's arguments as the reference takes them."""
    source, _, number = task_id.partition("/")
    for tasks, changes in RESTORE:
        if source == "Mbpp" and int(number) in tasks:
            return [changes[min(place, len(changes) - 1)](value) for place, value in enumerate(given)]
    return given


def are_floats(value: Any) -> bool:
    """Return whether a value is a float, or holds floats alone."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def close(out: Any, expected: Any, tolerance: float) -> bool:
    """Return whether two values are equal within the tolerance, item by item."""
    if isinstance(out, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(out) == len(expected) and all(map(close, out, expected, [tolerance] * len(out)))
    numbers = (int, float, complex)
    if not isinstance(out, numbers) or not isinstance(expected, numbers):
        return False
    return out == expected or abs(out - expected) <= tolerance + RELATIVE * abs(expected)


def surface(base_edge: float, height: float) -> int:
    """Return a square pyramid's surface, where `height` is that of the pyramid and not that of its faces."""
    return round(base_edge**2 + 2 * base_edge * math.hypot(base_edge / 2, height))


def digit_distance(one: int, other: int) -> int:
    """Return the sum of the digits' differences, with the shorter number padded with zeros."""
    width = max(len(str(one)), len(str(other)))
    return sum(abs(int(a) - int(b)) for a, b in zip(str(one).zfill(width), str(other).zfill(width), strict=True))


def agrees(name: str, given: list[Any], out: Any, expected: Any, tolerance: float) -> bool:
    """Return whether an answer is right, given the reference's."""
    if name == "find_zero":
        return abs(sum(factor * math.pow(out, power) for power, factor in enumerate(*given))) <= tolerance
    if name in SET_EQUAL:
        exact = set(out) == set(expected)
    elif name in NOT_NONE:
        found = expected is not None
        exact = out == found if isinstance(out, bool) else found == (out is not None)
    else:
        exact = (
            out == expected
            or name == "are_equivalent"
            or (name == "sum_div" and out == 0)
            or (name == "surface_Area" and abs(out - surface(*given)) <= tolerance)
            or (name == "digit_distance_nums" and out == digit_distance(*given))
        )
    return bool(exact) or (tolerance != 0 and type(out) is type(expected) and close(out, expected, tolerance))


def run(
    data: dict[str, Any],
    name: str,
    reference: Callable[..., Any],
    candidate: Callable[..., Any],
    record: Callable[..., None],
    limit: Callable[[float], None],
    alive: Callable[[], bool],
) -> None:
    """Run every input in turn; `record` is called with what came of it."""
    for group in ("base", "plus"):
        tolerance = data["atol"]
        for raw in data[group]:
            if raw in LEFT_OUT.get(data["task_id"], ()):
                continue
            if not alive():
                record(False, group)
                continue
            given = arguments(data["task_id"], raw)
            started = time.perf_counter()
            expected = reference(*copy.deepcopy(given))
            limit(max(LEAST_SECONDS, REFERENCE_FACTOR * (time.perf_counter() - started)))
            try:
                out = candidate(*given)
                if tolerance == 0 and name not in NOT_NONE and are_floats(expected):
                    tolerance = FLOATS
                passed, why = agrees(name, given, out, expected, tolerance), "not what the reference gives"
            except Exception as error:
                passed, why = False, repr(error)[:200]
            record(passed, group, "" if passed else f"{name}({str(given)[1:-1][:200]}): {why}")
