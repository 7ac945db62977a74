"""The process that a user's reward functions run in. It is asked by `apart`; it loads no torch of its own.

A message is a pickle after its length. Asked: (name of a function, columns); answered: ("gave", what it returned) or
what else became of it. The functions are called in this process's only thread, so that signals work in them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import random
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from remask.errors import UserError
from remask.rl import own_rewards
from remask.rl.faults import said_of

HEAD = 8
"""The number of bytes that hold a message's length."""


def send(pipe: BinaryIO, message: Any) -> None:
    """Write a message to a pipe: its length, then its content."""
    content = pickle.dumps(message)
    pipe.write(len(content).to_bytes(HEAD, "big") + content)
    pipe.flush()


def main(asked: int, answers: int, parent: int) -> None:
    """Answer calls of functions until the parent closes the pipe or ends."""
    _end_with(parent)
    own = os.getpid()
    functions: dict[str, own_rewards.OwnFunction] = {}
    with open(asked, "rb") as questions, open(answers, "wb") as out:
        send(out, ("ready", None))
        while head := questions.read(HEAD):
            name, columns = pickle.loads(questions.read(int.from_bytes(head, "big")))
            answer = _answer(functions, name, columns)
            if os.getpid() != own:
                os._exit(0)  # a function forked, and returned here too
            send(out, answer)
    os.killpg(0, signal.SIGKILL)  # with whatever the functions began


def _answer(functions: dict[str, own_rewards.OwnFunction], name: str, columns: dict[str, list[Any]]) -> tuple[str, Any]:
    try:
        if name not in functions:
            functions[name] = own_rewards.load(name)
        _seed(columns)
        returned = functions[name](columns)
    except UserError as error:
        return "refused", (error.what, error.where, error.mend)
    except BaseException as error:
        return "raised", said_of(error)
    try:
        pickle.dumps(returned)
    except Exception as error:
        return "raised", f"returned a {type(returned).__name__} that holds more than numbers ({error})"
    return "gave", returned


def _seed(columns: dict[str, list[Any]]) -> None:
    """Chance in a function follows from what it is given: a run that is repeated or goes on has the same."""
    content = repr((columns["prompts"], columns["completions"])).encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big")
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)


def _end_with(parent: int) -> None:
    """Die with the run, also where a function hangs and nothing is read any more. Linux alone knows how."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
