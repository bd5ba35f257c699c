"""How a program of this project ends."""
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from util.errors import UserError

# What the machine refuses: no fault of the program, so that its traceback says nothing.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOENT,
             errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENAMETOOLONG}


def run_program(main: Callable[..., int | None], *arguments: Any) -> NoReturn:
    """Ends the process with the exit code that main(*arguments) returns.

    What the user can put right is one line without a traceback, and exit code 2 (or the error's own): a UserError, and
    files that the system does not let us read or write. Ctrl-C ends with 130, and output that nobody reads any more
    (`| head`) with 141, as the shell says of a process that these signals end.
    """
    threading.excepthook = _thread_error
    try:
        code = main(*arguments)
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        # An error in a data-loading process arrives with that process's traceback around it.
        _say(str(error).rsplit("UserError: ", 1)[-1].strip())
        _exit(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        _exit(128 + signal.SIGINT)
    except BrokenPipeError:
        _exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        _exit(UserError.exit_code)


def _thread_error(error: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, and raises the thread's error in the next call too."""
    if not (isinstance(error.exc_value, OSError) and error.exc_value.errno in _REFUSALS):
        threading.__excepthook__(error)


def _say(text: str) -> None:
    try:
        if logging.getLogger().handlers:  # the program logs to the console, and possibly to a file
            logging.getLogger("main").error("%s", text)
        else:
            print(f"error: {text}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads, or the disk under the output is full
        pass


def _exit(code: int) -> NoReturn:
    """What is left in stdout's buffer must not end the program with another code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
