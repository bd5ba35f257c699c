"""Config files: plain Python files with `_base_` inheritance, overridden by `--options key=value`.

A config file is code and is executed: only run configs that you trust.
"""
import ast
import os
import runpy
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import addict

from util.errors import UserError, nearest
from util.files import write_text


class Config(addict.Dict):
    """Nested dict with attribute access. Unlike addict's own, a missing key is an error and is never created."""

    def __missing__(self, key):
        raise KeyError(key)

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no key {name!r}.{nearest(name, self)}") from None

    def text(self) -> str:
        """The config as a formatted Python file."""
        from yapf.yapflib.yapf_api import FormatCode  # it takes a quarter of a second, and most processes write none

        lines = "".join(f"{key} = {value!r}\n" for key, value in self.to_dict().items())
        return FormatCode(lines, style_config={"based_on_style": "pep8", "column_limit": 119})[0]

    def dump(self, path: str | os.PathLike) -> None:
        """Writes the config as a Python file that `load_config` reads back to an equal config."""
        write_text(path, self.text())


def load_config(path: str | os.PathLike, options: Mapping[str, Any] | None = None) -> Config:
    """Reads a config file, its bases first, and merges `options` over it.

    `options` maps a key, or the dotted path of a nested one ("a.b"), to its value.
    Raises UserError for a file that is missing or does not run, and for circular bases.
    """
    return override(Config(_merge(_read(Path(path), ()), {})), options or {}, str(path))


def override(config: Config, options: Mapping[str, Any], source: str) -> Config:
    """The config with the options of load_config; it changes. Raises UserError that names `source`."""
    for key, value in options.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, Config())
            if not isinstance(node, dict):
                raise UserError(f"--options {key}: {parent!r} is not a dict in {source}")
        node[last] = Config(value) if isinstance(value, dict) else value
    return config


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """Turns `key=value` arguments into typed values: numbers, booleans, None, lists, tuples, else strings."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--options takes key=value, got {pair!r}")
        options[key.strip()] = _parse_value(value.strip())
    return options


def _parse_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text[:1] in "[(" and text[-1:] in "])" and len(text) > 1:  # a list of bare words
        inner = text[1:-1].strip()
        items = [_parse_value(item.strip()) for item in inner.split(",")] if inner else []
        return items if text[0] == "[" else tuple(items)
    if "," in text:
        return [_parse_value(item.strip()) for item in text.split(",")]
    return text


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in chain:
        raise UserError(f"{path}: circular _base_ files: {' -> '.join(str(p) for p in (*chain, path))}")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        wanted = f", which {chain[-1]} names as _base_" if chain else ""
        raise UserError(f"no config file {path}{wanted}.{nearest(path.name, siblings)}")
    try:
        namespace = runpy.run_path(str(path))
    except Exception as error:
        raise UserError(f"{path}: the config file does not run: {type(error).__name__}: {error}") from error
    bases = namespace.get("_base_", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = _merge(merged, _read(path.parent / base, (*chain, path)))
    own = {k: v for k, v in namespace.items() if not k.startswith("_") and not _is_code(v)}
    return _merge(merged, own)


def _is_code(value: Any) -> bool:
    return isinstance(value, types.ModuleType) or callable(value)


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        both_dicts = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_dicts else value
    return merged
