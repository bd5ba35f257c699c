from pathlib import Path

import pytest

from tools.zoo import listing, main
from util import zoo
from util.errors import UserError


def test_the_docs_show_the_list():
    assert listing() in Path("docs/models.md").read_text(encoding="utf-8")


def test_without_names_it_lists_them(capsys):
    main([])
    printed = capsys.readouterr().out
    assert printed.startswith(listing()) and all(f"`{name}`" in printed for name in zoo.entries())


def test_a_name_gives_the_file(capsys):
    main(["bccd_lite_dino"])
    assert capsys.readouterr().out == f"bccd_lite_dino: {zoo.ROOT / 'weights/bccd_lite_dino.safetensors'}\n"


def test_an_unknown_name_is_told_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(zoo, "weights_path", lambda entry: pytest.fail("downloads"))
    with pytest.raises(UserError, match="no weights are called 'bccd'.* lists them"):
        main(["detr_r50", "bccd"])
