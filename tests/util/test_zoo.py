import hashlib
import json
from pathlib import Path

import pytest

from util import zoo
from util.download import cache_name
from util.errors import UserError
from util.options import parse_options

GOOD = {"config": "weights/bccd_lite_dino.py", "address": "https://x/y.pth"}


@pytest.mark.parametrize("name", zoo.entries())
def test_the_config_of_every_entry_builds_options(name):
    entry = zoo.find(name)
    options = parse_options(entry.load_config()).to_dict()
    assert entry.options == {key: options[key] for key in entry.options}
    assert entry.measured["AP"] > 0.4 and entry.measured_by


def test_the_own_weights_are_what_the_list_says():
    entry = zoo.find("bccd_lite_dino")
    content = zoo.weights_path(entry).read_bytes()
    assert len(content) == entry.size and hashlib.sha256(content).hexdigest() == entry.sha256


def test_the_released_weights_of_lite_detr_are_in_the_list():
    folder = "https://github.com/IDEA-Research/Lite-DETR/releases/download/litedetr"
    assert {"r50_s2ex3_49.9": ("r50_h2l2_2p1x3", 0.499), "r50_s3ex1_50.2": ("r50_h3l1_6p1x1", 0.502),
            "r50_s3ex3_50.4": ("r50_h3l1_2p1x3", 0.504)} == {
        Path(entry.address).stem: (entry.config_file.stem, entry.measured["AP"]) for entry in zoo.entries().values()
        if entry.address.startswith(folder)}


def test_unknown_names_are_none_and_the_nearest_is_told():
    assert zoo.find("detr") is None
    assert "no weights are called 'detr_r5'. Did you mean 'detr_r50'?" in zoo.unknown("detr_r5")


def test_weights_lie_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LITE_DETR_CACHE", str(tmp_path))
    entry = zoo.find("lite_dino_r50_h3l1_2p1x3")
    (tmp_path / cache_name(entry.address)).write_bytes(b"x")
    assert zoo.weights_path(entry) == tmp_path / cache_name(entry.address)


@pytest.mark.parametrize("values, message", [
    ({"config": "/etc/x.py"}, "config must"), ({"config": "../x.py"}, "config must"), ({"config": 3}, "config must"),
    ({"config": "config/zoo.json"}, "config must"), ({"options": [1]}, "options"), ({"address": ""}, "one of file"),
    ({"file": "weights/x.safetensors"}, "one of file"), ({"address": "http://x/y"}, "https"), ({"address": 5}, "https"),
    ({"sha256": "xyz"}, "sha256"), ({"sha256": "ABCDEF12"}, "sha256"), ({"sha256": 3}, "sha256"),
    ({"size": 0}, "size"), ({"size": "3"}, "size"), ({"measured": {"AP": 50.4}}, "measured"),
    ({"measured": [1]}, "measured"), ({"note": 3}, "texts"), ({"adress": "https://x"}, "unknown key"),
    ({"name": "x"}, "unknown key"), ({"address": "", "file": "../x.safetensors"}, "file must"),
    ({"address": "", "file": "/x.safetensors"}, "file must"),
])
def test_a_damaged_entry_is_named(tmp_path, values, message):
    (tmp_path / "zoo.json").write_text(json.dumps({"good": GOOD, "bad": GOOD | values}))
    with pytest.raises(UserError, match=f"zoo.json: entry 'bad': .*{message}"):
        zoo.entries(tmp_path / "zoo.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"x": 3}', '{"x": []}', '{"no name": {}}', "[" * 100_000, "\xff"])
def test_a_damaged_list_is_named(tmp_path, text):
    (tmp_path / "zoo.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="zoo.json"):
        zoo.entries(tmp_path / "zoo.json")


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the list of weights .*none.json"):
        zoo.entries(tmp_path / "none.json")
