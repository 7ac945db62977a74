"""The one exception a user's mistake raises: what is wrong, where, and how to mend it."""

from __future__ import annotations

LONGEST = 1000
"""The most characters that an error shows of what is wrong, and of what to do: a value that is quoted may be a whole
file."""
LONGEST_NAME = 160
"""The most characters of a file's name that an error shows."""


class UserError(ValueError):
    """A mistake in what the user gave (config, data, checkpoint, prompt).

    The command line prints it as one line and exits with code 2. `where` names the file, row or key; `mend` says
    what to do about it. In the line, long parts lose their middle and what cannot be printed is written as its number.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        said = shortened(what, LONGEST)
        message = f"{shortened(where)}: {said}" if where else said
        super().__init__(one_line(f"{message}; {shortened(mend, LONGEST)}" if mend else message))


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """Return the beginning and the end of a long text; a short one whole."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


def one_line(text: str) -> str:
    """Return the text with every character that would break the line, move the cursor or show as nothing written as an
    escape (`\\x1b`).
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in (lines[:2] if lines[0].endswith(":") else lines[:1]))
