"""Which errors are the user's or the machine's, and what they say in one line. All others are this program's own."""

from __future__ import annotations

import os
import re
import traceback

from remask.errors import UserError, first_line, shortened

NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "Invalid buffer size")
"""The words of torch where memory is short and it has no special error."""
NO_ROOM = ("PytorchStreamWriter", "inline_container", "basic_ios::clear")
"""The words of torch where a file cannot be written."""
SYSTEM_ERROR = re.compile(r"\(os error \d+\)")
"""The words of libraries written in Rust for an error of the system."""
NESTED = ("json", "yaml", "ast")
"""The readers of nested texts, which are as deep as a user makes them."""


def what_went_wrong(error: BaseException) -> str | None:
    """Return one line for an error that is the user's or the machine's; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (library := (error.name or "remask").partition(".")[0]) != "remask":
        return f"the library {library} is not installed; pip install --force-reinstall remask brings all of them"
    if is_out_of_memory(error):
        return f"not enough memory ({shortened(first_line(error))}); take a smaller batch, length or model"
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, UnicodeError):
        return f"text that cannot be read or written ({shortened(str(error))})"
    if isinstance(error, OverflowError):
        return f"a number is too large ({first_line(error)})"
    if is_unwritable(error) or (isinstance(error, RuntimeError) and "can't start new thread" in str(error)):
        return shortened(first_line(error))
    if isinstance(error, RecursionError) and _module(error) in NESTED:
        return "a file is nested too deeply to be read"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short."""
    named = type(error).__name__ == "OutOfMemoryError"
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return isinstance(error, MemoryError) or named or said


def is_unwritable(error: BaseException) -> bool:
    """Return whether an error says that a file could not be written (or, of tensors, read), whichever library raised
    it.
    """
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_ROOM)
    # tokenizers has no kind of error of its own: what the system says comes in a bare one.
    bare = type(error) is Exception and SYSTEM_ERROR.search(str(error)) is not None
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or said or bare


def refuse_lost_folder() -> None:
    """Raises UserError where the working directory is gone: no relative path, and much else, has a meaning there."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the working directory is gone", mend="go to another one: cd") from error


def _of_system(error: OSError) -> str:
    said = error.strerror or first_line(error)
    names = [
        shortened(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    ]
    return f"{' → '.join(names)}: {said}" if names else said


def _module(error: BaseException) -> str:
    """The package of the code that an error was raised in."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")).partition(".")[0] if frames else ""
