"""Links of the site to files outside docs/, without mkdocs: its objects are stood in for."""
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs.site_hooks import on_page_markdown, outside, published

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page, link, path", [
    ("models.md", "../config/a.py", "config/a.py"), ("benchmarks/finetune.md", "../../weights/a.md", "weights/a.md"),
    ("benchmarks/finetune.md", "../models.md", None), ("models.md", "benchmarks/finetune.md", None)])
def test_a_link_out_of_the_docs_is_known_by_its_path(page, link, path):
    assert outside(page, link) == path


def test_such_links_lead_to_the_published_file_folders_are_named_and_mistakes_stay():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="benchmarks/x.md"))
    config = SimpleNamespace(config_file_path=str(ROOT / "mkdocs.yml"))
    text = "[a](../../config/DINO/DINO_4scale.py) [b](../../util) [c](../models.md) [d](../../no.py) ![e](../x.png)"
    assert published("config/DINO/DINO_4scale.py") == "files/config/DINO/DINO_4scale.py.txt"
    assert on_page_markdown(text, page, config, None) == (
        "[a](../files/config/DINO/DINO_4scale.py.txt) b [c](../models.md) [d](../../no.py) ![e](../x.png)")
