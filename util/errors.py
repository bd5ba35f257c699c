"""The exceptions for what the user can fix."""
import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message names the file or key and says what to do; main.py prints it without a traceback."""

    exit_code = 2


class LostProcess(UserError):
    """Another process of the training is gone: the training can go on from its checkpoint."""

    exit_code = 75  # sysexits.h: try again later


def nearest(name: str, known: Iterable[str]) -> str:
    """" Did you mean 'x'?" for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
