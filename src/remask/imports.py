"""Importing torch, transformers and what they bring, some four thousand modules, without waiting for the collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_frozen = False


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector away from modules while they are imported, and ever after: it would go through
    all objects whenever there are a quarter more of them, and what modules are made of is never garbage.
    """
    global _frozen
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if not _frozen:  # once: what a process has made since may well be garbage
            _frozen = True
            gc.freeze()
