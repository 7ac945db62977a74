"""The process that `verifier` asks: a line [reference, completion] in, `1` or `0` out. It imports nothing of Remask.

Its processor time for an answer runs out in SIGPROF, which ends it: no computation, in Python or below, can hold it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys

MEMORY = 4 << 30


def main(seconds: float) -> None:
    """Answer requests on stdin, one line each, until it ends; `seconds` bound each answer."""
    out, sys.stdout = sys.stdout, sys.stderr
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    verified("1", "1")
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        limit(seconds)
        try:
            answer = verified(*json.loads(line))
        except Exception:
            answer = False
        limit(0)
        print(int(answer), file=out, flush=True)


def verified(reference: str, completion: str) -> bool:
    """Return whether the library finds the reference's answer in a completion."""
    from math_verify import parse, verify

    # Its own timeouts are signals that it may swallow.
    gold = parse(f"${reference}$", parsing_timeout=None)
    found = parse(completion, parsing_timeout=None)
    return bool(gold and found and verify(gold, found, timeout_seconds=None))


def limit(seconds: float) -> None:
    """End the process after that much processor time; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]))
