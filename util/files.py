"""Files that are either complete or absent."""
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from util.errors import UserError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path in the same folder. What is written to it takes the place of `path` when the block ends, and
    is removed if the block fails: an earlier file is then intact.

    Raises UserError for what the disk refuses (full, read-only, folder gone).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # absent, or as unreachable as the file itself
            temporary.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, as atomic_write does. What is no letter, as in damaged names, is escaped."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Raises UserError, which names the file or folder, for what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise cannot_write(Path(path), error) from error


def cannot_write(path: Path, error: Exception) -> UserError:
    """The error for a file that could not be written; an earlier one of its name was not touched."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    return UserError(f"cannot write {path}: {reason}"
                     + (". The earlier file of that name is intact" if path.is_file() else ""))


def remove_unfinished(folder: Path) -> None:
    """Removes what killed programs left half written. No other program may be writing to the folder."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
