"""Tables in files that processes map instead of reading a data set anew.

A file is used only if it was written by this version, for the same files of the same size and time, and if nothing in
it changed since: otherwise the data set is read again, and the file replaced.
"""
import hashlib
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from datasets.benchmark_facts import BenchmarkFacts
from datasets.formats.parsed import Note
from datasets.table import Table, Texts
from util.errors import UserError
from util.files import atomic_write

logger = logging.getLogger(__name__)
VERSION = 2  # raise it when the same files give another table
LEAST_BYTES, LEAST_FILES = 8 << 20, 2000  # smaller sets are read as fast as they are mapped
COLUMNS = ("folders", "sizes", "starts", "boxes", "labels", "areas", "crowds")
TEXTS = ("data", "ends")
FACTS = ("negative", "not_exhaustive", "ignored")  # those that are arrays


def cache_file(folder: Path, name: str, place: str) -> Path:
    """Where the table of a split is kept. name: legible part of the file's name; place: what tells data sets apart."""
    legible = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)[:40]
    return folder / f"{legible}-{hashlib.sha256(place.encode(errors='replace')).hexdigest()[:16]}.safetensors"


def write_table(path: Path, state: str, table: Table, notes: list[Note]) -> None:
    """state: a checksum of what the table was read from. Raises UserError for what the disk refuses."""
    arrays = {name: np.ascontiguousarray(values) for name, values in _arrays(table).items()}
    facts = {"frequencies": list(table.facts.frequencies.items()), "has_class_lists": table.facts.has_class_lists,
             "has_visible": table.facts.has_visible}
    content = {"names": list(table.names.items()), "facts": facts, "notes": notes}
    described = {"version": VERSION, "state": state, "content": content, "checksum": _checksum(arrays, content)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error.strerror}") from error
    with atomic_write(path) as temporary:
        save_file({name: torch.from_numpy(values) for name, values in arrays.items()}, temporary,
                  {"table": json.dumps(described)})


def read_table(path: Path, state: str) -> tuple[Table, list[Note]] | None:
    """The mapped table, if the file holds what was written for this state."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads(file.metadata()["table"])
            if described["version"] != VERSION or described["state"] != state:
                return None
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}
        content = described["content"]
        if described["checksum"] != _checksum(arrays, content):
            raise ValueError("its content changed")
        return _table(arrays, content), [(level, text) for level, text in content["notes"]]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): the data set is read again", path, error)
        return None


def _arrays(table: Table) -> dict[str, np.ndarray]:
    arrays = {name: getattr(table, name) for name in COLUMNS}
    arrays |= {f"file_names.{name}": getattr(table.file_names, name) for name in TEXTS}
    arrays |= {f"facts.{name}": getattr(table.facts, name) for name in FACTS}
    if isinstance(table.ids, Texts):
        return arrays | {f"ids.{name}": getattr(table.ids, name) for name in TEXTS}
    return arrays | {"ids": table.ids}


def _table(arrays: dict[str, np.ndarray], content: dict[str, Any]) -> Table:
    def texts(name: str) -> Texts:
        return Texts(*(arrays[f"{name}.{part}"] for part in TEXTS))

    known = content["facts"]
    facts = BenchmarkFacts(dict(known["frequencies"]), known["has_class_lists"], arrays["facts.negative"],
                           arrays["facts.not_exhaustive"], known["has_visible"], arrays["facts.ignored"])
    return Table(dict(content["names"]), arrays["ids"] if "ids" in arrays else texts("ids"), texts("file_names"),
                 facts=facts, **{name: arrays[name] for name in COLUMNS})


def _checksum(arrays: dict[str, np.ndarray], content: dict[str, Any]) -> str:
    """Of the content, and of the arrays' names, types, shapes and bytes."""
    total = zlib.crc32(json.dumps(content).encode())
    for name in sorted(arrays):
        values = arrays[name]
        total = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), total)
        total = zlib.crc32(values.reshape(-1).view(np.uint8).data, total)
    return f"{total:08x}"
