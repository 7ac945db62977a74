"""What every job of a study needs, imported once before its processes are forked (`schedule`)."""

from __future__ import annotations

from remask.imports import uncollected

with uncollected():
    import remask.evaluation.evaluate
    import remask.rl.run
    import remask.sft.run  # noqa: F401
