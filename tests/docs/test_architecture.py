"""The examples of docs/architecture.md do what they say: their files are written, registered, built and run."""
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = {title: BLOCK.findall(text) for title, text in
            (section.split("\n", 1) for section in PAGE.split("\n## ")[1:])}
REGISTRIES = {"models.encoders": "ENCODERS", "models.decoders": "DECODERS", "models.backbones": "BACKBONES"}


@pytest.fixture
def restored():
    """The registries as they were, once the test is over."""
    registries = [getattr(importlib.import_module(package), name) for package, name in REGISTRIES.items()]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before):
        registry.clear()
        registry.update(entries)


def write_module(block, folder, monkeypatch):
    """Puts the file that a block's first line names into its package."""
    path = Path(block.split("\n", 1)[0].removeprefix("# "))
    package = importlib.import_module(".".join(path.parts[:-1]))
    assert not (ROOT / path).exists(), f"the example would overwrite {path}"
    place = folder / path.parent
    place.mkdir(parents=True)
    (place / path.name).write_text(block)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
    return ".".join(path.with_suffix("").parts)


def test_the_sections_are_there():
    added = ("an encoder", "a decoder", "a backbone", "a loss", "a data format")
    assert {f"Add {what}" for what in added} <= set(SECTIONS)


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if blocks])
def test_an_example_works(title, tmp_path, monkeypatch, restored):
    monkeypatch.chdir(ROOT)
    module, use = SECTIONS[title]
    name = write_module(module, tmp_path, monkeypatch)
    try:
        exec(compile(use, f"docs/architecture.md: {title}", "exec"), {})
        assert name in sys.modules
    finally:
        sys.modules.pop(name, None)
