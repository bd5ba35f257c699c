"""Links of the site to files outside docs/, without mkdocs: its objects are stood in for."""
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs.site_hooks import on_page_markdown, outside, published, readme_sections

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


def test_the_first_page_goes_on_with_the_readme_and_its_links():
    text = readme_sections((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "## COCO" in text and "## Credits" not in text
    assert "[docs/models.md](models.md)" in text and "](../config/demo/lite_dino.py)" in text
    assert "](demo_detections.jpg)" in text and "](docs/" not in text
