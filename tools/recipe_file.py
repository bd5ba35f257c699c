"""The file of recipes that tools/compare_recipes.py reads: {name: {config key: value, ...}, ...} in YAML."""
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from util.config import load_config, parse_pairs
from util.errors import UserError
from util.options import Options, parse_options

NAME = re.compile(r"(?!recipes\.)[A-Za-z0-9][A-Za-z0-9_.,+=-]{0,79}")  # a folder's; recipes.* are the results


@dataclass(frozen=True)
class Recipe:
    """A training: a config file, the key=value pairs over it, and the options that both make."""

    name: str
    config: str
    pairs: tuple[str, ...]
    options: Options

    @property
    def text(self) -> str:
        return " ".join([self.config, *self.pairs])


class _Loader(yaml.SafeLoader):
    """YAML would silently take the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise UserError(f"line {key.start_mark.line + 1}: {key.value!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipes(path: Path, config: str | None) -> list[Recipe]:
    """The recipes in the order of the file, the first of them the baseline. config: of those that name none.

    Values are read as --options reads them. Raises UserError, which names file and recipe, for a file that is no YAML
    of this form, a name that is no plain file name, an unknown key and a value that does not fit.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{path}, {error}") from error
    if not isinstance(content, dict) or len(content) < 2:
        raise UserError(f"{path} must hold at least two recipes, such as `baseline: {{}}` and `slow: {{lr: 5e-5}}`; "
                        "the first is what the others are compared with")
    return [_recipe(path, name, body, config) for name, body in content.items()]


def _recipe(path: Path, name: Any, body: Any, config: str | None) -> Recipe:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{path}: a recipe cannot be named {name!r}, because its runs lie in a folder of that name: "
                        "use letters, digits and _ . , + = -, up to 80 of them (a number or true needs quotes), and "
                        "not recipes.*")
    source = f"{path}, recipe {name!r}"
    if body is not None and not isinstance(body, dict):
        raise UserError(f"{source}: {body!r} must be config keys with their values, such as {{lr: 5e-5}}")
    values = dict(body or {})
    config = values.pop("config", config)
    if not isinstance(config, str):
        raise UserError(f"{source}: it names no config file: pass -c CONFIG, or give it `config: FILE`")
    strange = [key for key in values if not isinstance(key, str)]
    if strange:
        raise UserError(f"{source}: {strange[0]!r} is no config key")
    pairs = tuple(f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in values.items())
    try:
        return Recipe(name, config, pairs, parse_options(load_config(config, parse_pairs([*pairs]))))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
