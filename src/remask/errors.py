"""The one exception a user's mistake raises: what is wrong, where, and how to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave (config, data, checkpoint, prompt).

    The command line prints it as one line and exits with code 2. `where` names the file, row or key; `mend` says
    what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}; {mend}" if mend else message)


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in (lines[:2] if lines[0].endswith(":") else lines[:1]))
