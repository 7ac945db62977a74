"""Importing torch, transformers and what they bring, some four thousand modules, without waiting for the collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_frozen = False


@contextmanager
def uncollected() -> Iterator[None]:
    """Python looks for garbage among all objects whenever there are a quarter more of them. What modules are made of is
    none: it is not looked through while they are imported, nor ever after.
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
