"""The only way between a program and its tests: frames of JSON that hold plain data and nothing else.

A frame is its length (8 bytes, big-endian) and that many bytes of JSON. JSON's own scalars stand for themselves, every
other value is `[tag, content]`. Reading a frame builds None, bool, int, float, complex, str, bytes, the built-in
containers, range, Fraction and Decimal, or one of the two stand-ins `Opaque` and `Items`: no code of the sender runs,
and a subclass arrives as the built-in it derives from, without its methods.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STARTED = b"!"
"""The first byte that a box sends, before it runs anything that was handed to it."""

MOST_BYTES = 256 << 20
"""The largest frame that a reader takes."""

MOST_ITEMS = 1_000_000
"""The most items of an iterator that are sent."""

DEEP = 5_000
"""The recursion limit while frames are read and written: deeply nested answers are judged, not refused."""

SMALL = 1 << 53
PLAIN = frozenset({str, float, bool, type(None)})
NESTED = {list, dict}
TAGS: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "f"}
CONTAINERS = {tag: kind for kind, tag in TAGS.items()}
BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    *((kind, kind) for kind in (list, tuple, set, frozenset, dict)),
)
"""The base that each kind of value is sent as: an enumeration's member as its value, a Counter as a dict."""


class WireError(Exception):
    """A frame is not plain data, is too long, or does not come."""


class LateError(WireError):
    """Nothing came before the deadline."""


class Opaque:
    """An object that is not plain data: only its type's name and its truth are sent. It is equal to itself only."""

    def __init__(self, kind: str, truth: bool) -> None:
        self.kind, self.truth = kind, truth

    def __bool__(self) -> bool:
        return self.truth

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Items(Opaque):
    """The items that an iterator or view gave, to be gone through. They are equal to themselves only, as a generator
    is.
    """

    def __init__(self, kind: str, items: list[Any]) -> None:
        super().__init__(kind, True)
        self.items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self.items

    def __next__(self) -> Any:
        return next(self.items)


def encode(value: Any) -> Any:
    """Return the value as what JSON can hold. Raises TypeError, RecursionError or MemoryError where that is
    impossible.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is int:
        return value if -SMALL < value < SMALL else ["i", hex(value)]
    if kind in TAGS:
        return [TAGS[kind], _items(list(value))]
    if kind is dict:
        return ["d", [_items(list(value)), _items(list(value.values()))]]
    for base, plain in BASES:
        if isinstance(value, base):
            return encode(plain(value))
    if isinstance(value, (bytes, bytearray)):
        return ["b" if isinstance(value, bytes) else "a", bytes(value).decode("latin-1")]
    if isinstance(value, complex):
        return ["c", [value.real, value.imag]]
    if kind is range:
        return ["r", [encode(value.start), encode(value.stop), encode(value.step)]]
    return _encode_library(value)


def _items(values: list[Any]) -> list[Any]:
    """The items encoded; a list of JSON's own scalars is passed on whole, which is what makes long lists cheap."""
    kinds = set(map(type, values))
    if kinds <= PLAIN or (kinds == {int} and min(values) > -SMALL and max(values) < SMALL):
        return values
    return [encode(value) for value in values]


def _encode_library(value: Any) -> Any:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if name == "fractions.Fraction":
        return ["q", [encode(value.numerator), encode(value.denominator)]]
    if name == "decimal.Decimal":
        return ["m", str(value)]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return encode(value.item())
    if (numpy is None or not isinstance(value, numpy.ndarray)) and hasattr(value, "__iter__"):
        return ["n", [name, _items(list(islice(value, MOST_ITEMS)))]]
    return ["o", [name, bool(value)]]


def decode(value: Any) -> Any:
    """Return the value that `encode` wrote. Raises WireError for anything it does not write."""
    if type(value) is dict:
        raise WireError("a JSON object, which nothing is sent as")
    if type(value) is not list:
        return value
    try:
        tag, content = value
        return _decode(tag, content)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise WireError(f"not plain data ({type(error).__name__})") from None


def _decode(tag: str, content: Any) -> Any:
    if tag in CONTAINERS:
        return CONTAINERS[tag](_decoded(content))
    match tag:
        case "i":
            return int(content, 16)
        case "d":
            keys, values = content
            return dict(zip(_decoded(keys), _decoded(values), strict=True))
        case "b":
            return content.encode("latin-1")
        case "a":
            return bytearray(content.encode("latin-1"))
        case "c":
            return complex(*content)
        case "r":
            return range(*_decoded(content))
        case "q":
            from fractions import Fraction

            return Fraction(*_decoded(content))
        case "m":
            from decimal import Decimal

            return Decimal(content)
        case "n":
            return Items(str(content[0]), _decoded(content[1]))
        case "o":
            return Opaque(str(content[0]), content[1] is True)
    raise WireError(f"unknown tag {str(tag)[:20]!r}")


def _decoded(values: list[Any]) -> list[Any]:
    return values if NESTED.isdisjoint(map(type, values)) else [decode(value) for value in values]


def send(fd: int, value: Any) -> None:
    """Write one frame. Raises OSError where nobody reads any more, and what `encode` raises before a byte is sent."""
    body = json.dumps(encode(value)).encode()
    write(fd, len(body).to_bytes(8, "big") + body)


def receive(fd: int, deadline: float | None = None) -> Any:
    """Read one frame. Raises WireError where it does not come by `deadline` (monotonic) or is not one."""
    length = int.from_bytes(read(fd, 8, deadline), "big")
    if length > MOST_BYTES:
        raise WireError(f"a frame of {length} bytes")
    try:
        return decode(json.loads(read(fd, length, deadline)))
    except (ValueError, RecursionError, MemoryError) as error:
        raise WireError(f"not plain data ({type(error).__name__})") from None


def write(fd: int, data: bytes) -> None:
    """Write all bytes to a file descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read(fd: int, count: int, deadline: float | None = None) -> bytes:
    """Return exactly that many bytes. Raises WireError where they do not come by `deadline` (monotonic)."""
    parts = []
    while count:
        if deadline is not None and not _readable(fd, max(0.0, deadline - time.monotonic())):
            raise LateError("no answer in time")
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise WireError("the program is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
