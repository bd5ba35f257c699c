"""How a config chooses: a name, looked up in the dict of a folder."""
from collections.abc import Mapping
from typing import TypeVar

from util.errors import UserError, nearest

Entry = TypeVar("Entry")


def choose(registry: Mapping[str, Entry], key: str, name: str) -> Entry:
    """The entry that config key `key` names. An entry "prefix:NAME" stands for all names with that prefix.

    Raises UserError with the known names, and the nearest of them, for any other.
    """
    prefix, colon, _ = name.partition(":")
    found = registry.get(f"{prefix}:NAME" if colon else name)
    if found is None:
        raise UserError(f"{key}={name!r} is unknown.{nearest(name, registry)} Known: {', '.join(registry)}")
    return found
