"""Odd values, and what can be wrong with a file as a whole."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

NESTED: Any = []
for _ in range(60):
    NESTED = [NESTED]

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    7,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    10**6 + 1,
    2**31,
    2**63,
    -(2**70),
    10**30,
)
TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\t\n",
    "text",
    "none",
    "null",
    "nan",
    "1",
    "-1",
    "true",
    "a,b",
    ",",
    "=",
    "@missing",
    "*",
    "[",
    "..",
    "missing/",
    "missing.jsonl",
    "rows.jsonl",
    "owner/name",
    "file.py:Name",
    "module:function",
    "generated:sudoku:2",
    "generated:sudoku:-1",
    "match=",
    "<|mask|>",
    "<|end|><|endoftext|>",
    "\ud800",
    "\udfff tail",
    "a\0b",
    "\x1b[31mred\x07",
    "\u202eright to left",
    "\ufeffmark",
    "e\u0301\u0327" * 8,
    "😀👩‍👩‍👧",
    "{{ messages }}",
    "{question}",
    "{",
    "x" * 300,
    "x" * 100_000,
)
OTHERS: tuple[Any, ...] = (None, True, False, [], [None], [1, 2], ["a"], [["a"]], {}, {"a": 1}, {"": None}, NESTED)


def value(chance: random.Random) -> Any:
    return chance.choice(chance.choice((NUMBERS, TEXTS, OTHERS)))


def spelled(one: Any) -> str:
    """A value as it is written after a flag, where no NUL can stand."""
    text = one if isinstance(one, str) else json.dumps(one)
    return text.replace("\0", "")[:5000]


def as_yaml(tree: Any) -> bytes:
    """YAML with what JSON has no word for, such as NaN; lone surrogates as escapes."""
    try:
        return yaml.safe_dump(tree, sort_keys=False).encode()
    except (UnicodeError, yaml.YAMLError):
        return json.dumps(tree).encode()


def as_lines(rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree of mappings and lists, the tree's own (empty) first."""
    yield at
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def changed(tree: Any, chance: random.Random, *, named: bool = True) -> tuple[Any, str]:
    """A tree with one place changed, and what was done: another value, a key taken out or added, a list grown."""
    at = chance.choice([path for path in places(tree) if path or not named] or [()])
    if not at:
        new = value(chance)
        return new, f"the whole is {shown(new)}"
    whole = json.loads(json.dumps(tree))
    inner = whole
    for key in at[:-1]:
        inner = inner[key]
    name = ".".join(map(str, at))
    how = chance.choice(("value", "value", "value", "out", "more"))
    if how == "out":
        del inner[at[-1]]
        return whole, f"{name} is taken out"
    if how == "more" and isinstance(inner, dict):
        key = chance.choice(("unknown", "", "\ud800", at[-1].upper(), f"{at[-1]} "))
        inner[key] = value(chance)
        return whole, f"beside {name} is {key!r}: {shown(inner[key])}"
    inner[at[-1]] = value(chance)
    return whole, f"{name} is {shown(inner[at[-1]])}"


def shown(one: Any) -> str:
    text = ascii(one)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)} characters)"


def doubled(content: bytes) -> bytes:
    """The first key of a JSON or YAML text once more."""
    if found := re.search(rb'\{("[^"]*": ?("[^"\\]*"|[\d.]+)), ', content):
        return content.replace(found[1], found[1] + b", " + found[1], 1)
    return content + content.split(b"\n", 1)[0] + b"\n"


def torn(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content)) if content else 0]


def garbage(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(max(16, min(len(content), 4096)))


def flipped(content: bytes, chance: random.Random) -> bytes:
    """A few bytes of it are others."""
    out = bytearray(content or b"\0")
    for _ in range(3):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "torn": torn,
    "garbage": garbage,
    "bytes flipped": flipped,
    "empty": lambda content, chance: b"",
    "white space alone": lambda content, chance: b" \n\t\r\n\n",
    "a folder instead": lambda content, chance: None,
    "with a BOM": lambda content, chance: b"\xef\xbb\xbf" + content,
    "with CRLF": lambda content, chance: content.replace(b"\n", b"\r\n"),
    "with CR alone": lambda content, chance: content.replace(b"\n", b"\r"),
    "in UTF-16": lambda content, chance: content.decode("utf-8", "replace").encode("utf-16"),
    "in Latin-1": lambda content, chance: content + "é".encode("latin-1"),
    "with NULs": lambda content, chance: content.replace(b" ", b"\0", 2) + b"\0",
    "a key twice": lambda content, chance: doubled(content),
    "deeply nested": lambda content, chance: b"[" * 20_000 + content,
    "closed too often": lambda content, chance: content + b"}]}\n",
    "a tab first": lambda content, chance: b"\t" + content,
    "null": lambda content, chance: b"null\n",
    "a number": lambda content, chance: b"17",
    "a list": lambda content, chance: b"[1, [2]]",
    "a YAML tag": lambda content, chance: b"!!python/object:os.system {}\n" + content,
    "a YAML alias of itself": lambda content, chance: b"&a [*a]\n",
    "a YAML date": lambda content, chance: content + b"\nseed: 2020-01-01\n",
}
"""What may be wrong with a whole file: from its bytes to others, or None for a folder of that name."""
