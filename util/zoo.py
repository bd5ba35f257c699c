"""Weights by name: config/zoo.json says where released and own weights are, and what belongs to them."""
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.config import Config, load_config
from util.download import cached
from util.errors import UserError, nearest
from util.saved_state import is_number, is_plain

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "config" / "zoo.json"


@dataclass(frozen=True)
class Entry:
    """config: file in the project. options: its keys that these weights change. address: https; or file: in the
    project. sha256 and size in bytes, where they are known. measured: COCO's numbers, in [0, 1], and by whom, on what.
    """

    name: str
    config: str
    options: dict[str, Any]
    address: str
    file: str
    sha256: str
    size: int | None
    measured: dict[str, float]
    measured_by: str
    note: str

    @property
    def config_file(self) -> Path:
        return ROOT / self.config

    def load_config(self) -> Config:
        return load_config(self.config_file, self.options)


def find(name: str) -> Entry | None:
    """The weights of that name, if there are such."""
    return entries().get(name)


def weights_path(entry: Entry) -> Path:
    """Local path of the weights; downloads them if necessary."""
    return ROOT / entry.file if entry.file else cached(entry.address, entry.sha256, entry.size)


def unknown(name: str) -> str:
    """In words, that no weights have this name, with the nearest that some have."""
    return f"no weights are called {name!r}.{nearest(name, entries())} `python tools/zoo.py` lists them"


@functools.cache
def entries(path: Path = ZOO) -> dict[str, Entry]:
    """By name. Raises UserError that names the file and the entry if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the list of weights {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be an object of names and entries")
    return {name: _entry(name, values, path) for name, values in content.items()}


def _entry(name: str, values: Any, path: Path) -> Entry:
    values = values if isinstance(values, dict) else {}
    entry = Entry(name, values.get("config"), values.get("options", {}), values.get("address", ""),
                  values.get("file", ""), values.get("sha256", ""), values.get("size"), values.get("measured", {}),
                  values.get("measured_by", ""), values.get("note", ""))
    surplus = [key for key in values if key not in vars(entry) or key == "name"]
    checks = [
        (bool(surplus), f"unknown key {surplus[:1]}"),
        (not name.isidentifier(), "its name must be one of Python, for hubconf.py"),
        (not _is_inside(entry.config, ".py"), "config must be a .py file of the project"),
        (not (isinstance(entry.options, dict) and is_plain(entry.options)), "options must be config keys and values"),
        (bool(entry.file) == bool(entry.address), "one of file and address must be given"),
        (bool(entry.file) and not _is_inside(entry.file, ".safetensors"), "file must be a .safetensors of the project"),
        (not isinstance(entry.address, str) or bool(entry.address) and not entry.address.startswith("https://"),
         "address must be https"),
        (not _is_sha256(entry.sha256), "sha256 must be 8 to 64 hexadecimal digits"),
        (not (entry.size is None or isinstance(entry.size, int) and entry.size > 0), "size must be bytes"),
        (not (isinstance(entry.measured, dict) and all(is_number(x, 0, 1) for x in entry.measured.values())),
         "measured must be numbers from 0 to 1"),
        (not all(isinstance(text, str) for text in (entry.measured_by, entry.note)), "texts must be texts"),
    ]
    for wrong, message in checks:
        if wrong:
            raise UserError(f"{path}: entry {name!r}: {message}")
    return entry


def _is_inside(path: Any, suffix: str) -> bool:
    return isinstance(path, str) and path.endswith(suffix) and (ROOT / path).resolve().is_relative_to(ROOT)


def _is_sha256(value: Any) -> bool:
    return value == "" or isinstance(value, str) and 8 <= len(value) <= 64 and set(value) <= set("0123456789abcdef")
