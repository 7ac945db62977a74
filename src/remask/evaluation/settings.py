"""Decoding settings of evaluations: which have an effect, which must agree for two scores to be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from remask.errors import UserError

FREE_DECODING_KEYS = frozenset({"batch_size", "seed"})
"""The decoding entries that may differ between comparable evaluations: one row of a batch decodes as it would alone,
and the seed of sampling is chance, not a setting."""

OFF = {"guidance": 0.0, "suppress_eos": False, "stop_last": False, "cache": "none"}
"""The settings that change nothing at these values."""
NEWER = frozenset({"cache"})
"""The settings that older records do not name: they were as good as off."""


def in_force(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have an effect, for people to read; the record holds them all."""
    shown = {key: value for key, value in decoding.items() if value is not None and OFF.get(key, ...) != value}
    if decoding.get("schedule") != "t":
        shown.pop("eps", None)
    return shown


def comparable_decoding(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoding setting without what may differ between comparable evaluations."""
    kept = {key: value for key, value in decoding.items() if key not in FREE_DECODING_KEYS}
    return {key: value for key, value in kept.items() if key not in NEWER or OFF[key] != value}


def same_decoding(a: Mapping[str, Any], b: Mapping[str, Any], where: str) -> None:
    """Raises UserError naming what differs where two decoding settings are not comparable."""
    left, right = comparable_decoding(a), comparable_decoding(b)
    differing = [
        f"{key} {json.dumps(left.get(key))} against {json.dumps(right.get(key))}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
    if differing:
        raise UserError(
            f"decoded differently: {'; '.join(differing)}",
            where=where,
            mend="evaluate both with the same decoding, or allow the difference explicitly",
        )
