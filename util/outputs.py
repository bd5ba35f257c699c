"""Names for outputs, and outputs that would take the place of an input."""
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from util.errors import UserError


def name_of_weights(source: str | os.PathLike) -> str:
    """A name, without a suffix, for what is made of these weights: their own, with that of the folder in front where a
    training gave it, because all trainings give the same ones. outputs/a/checkpoint_best.pth: "a_checkpoint_best"."""
    path = Path(os.path.abspath(source))
    return f"{path.parent.name}_{path.stem}" if path.name.startswith("checkpoint") and path.parent.name else path.stem


def keep_inputs(outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike | None]) -> None:
    """Raises UserError if an output would take the place of an input or lie in an input folder, or if two outputs
    would be one file. To be called before anything is written.

    An input is recognised under any name: through links, another spelling of its path, or a file system that ignores
    case. Inputs that are not there, such as addresses and None, do not count.
    """
    read = {identity: path for path in inputs if path is not None and (identity := _identity(path)) is not None}
    written: dict[tuple[Path, str], str | os.PathLike] = {}
    for path in outputs:
        for place in (path, *Path(path).resolve().parents):
            identity = _identity(place)
            if identity is not None and identity in read:
                where = "over" if place is path else "into"
                raise UserError(f"{path} would be written {where} the input {read[identity]}: choose another place for "
                                "the output")
        name = _comparable(path)
        if name in written:
            raise UserError(f"the outputs {written[name]} and {path} would be one file (on some disks): give the "
                            "inputs one by one, each with an output folder of its own")
        written[name] = path


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """What all names of an existing file have in common."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _comparable(path: str | os.PathLike) -> tuple[Path, str]:
    """Folder and name, the same for names that differ only in case or in how their accents are composed."""
    path = Path(path)
    return path.parent.resolve(), unicodedata.normalize("NFC", path.name).casefold()
