"""What LVIS and CrowdHuman say stays with its image and its box, wherever these go."""
import dataclasses
import json

import numpy as np
import pytest

from datasets.benchmark_facts import HAS_VISIBLE, NEGATIVE, NOT_EXHAUSTIVE, BenchmarkFacts, joined_facts
from datasets.data import DetectionData
from datasets.evaluation.crowdhuman import is_crowdhuman
from datasets.evaluation.lvis import is_lvis
from datasets.formats.coco_file import read_by_entry, read_plainly
from datasets.table import joined, make_table, to_coco
from tests.datasets.facts import same_facts, some_facts
from tests.datasets.formats.layouts import write_coco
from util.options import DataOptions


def table_of(order=(0, 1, 2), facts=None):
    """Images with the ids 10, 20 and 30, given in some order; box k begins at x = k."""
    ids, image = [(10, 20, 30)[i] for i in order], np.repeat(np.arange(3), 2)
    return make_table({1: "cat", 5: "dog"}, ids, [f"{i}.jpg" for i in ids], np.full((3, 2), 100.0), image,
                      np.array([(k, 0, 5, 5) for k in range(6)]), np.array([1, 5] * 3), np.full(6, 25.0),
                      np.zeros(6, bool), some_facts() if facts is None else facts)


def told(table):
    """The facts by image id, and the x of ignored boxes."""
    content = table.content()
    return ({image["id"]: (image[NEGATIVE], image[NOT_EXHAUSTIVE]) for image in content["images"]},
            sorted(a["bbox"][0] for a in content["annotations"] if a.get("ignore")))


def test_they_are_where_coco_files_have_them():
    content = table_of().content()
    assert content["info"] == {HAS_VISIBLE: True}
    assert content["categories"] == [{"id": 1, "name": "cat", "frequency": "r"},
                                     {"id": 5, "name": "dog", "frequency": "f"}]
    assert told(table_of()) == ({10: ([5, 1], []), 20: ([], [5]), 30: ([1], [])}, [0, 3, 4])
    assert is_lvis(to_coco(content)) and is_crowdhuman(to_coco(content))
    plain = table_of(facts=BenchmarkFacts()).content()
    assert plain["info"] == {} and plain["images"][0].keys() == {"id", "file_name", "width", "height"}
    assert plain["categories"][0].keys() == {"id", "name"} and "ignore" not in plain["annotations"][0]
    assert not is_lvis(to_coco(plain)) and not is_crowdhuman(to_coco(plain))


def test_empty_lists_are_lvis_too():
    facts = dataclasses.replace(some_facts(), negative=np.zeros((0, 2), int), not_exhaustive=np.zeros((0, 2), int))
    assert is_lvis(to_coco(table_of(facts=facts).content()))


def test_images_in_another_order():
    assert told(table_of((2, 0, 1))) == ({30: ([5, 1], []), 10: ([], [5]), 20: ([1], [])}, [0, 3, 4])


def test_parts_of_a_table():
    assert told(table_of().take(np.array([0, 2]))) == ({10: ([5, 1], []), 30: ([1], [])}, [0, 4])
    assert told(table_of().take(np.array([1]))) == ({20: ([], [5])}, [3])
    kept = table_of().keep_boxes(np.array([False, True, True, True, True, False]))
    assert told(kept) == (told(table_of())[0], [3, 4])
    same_facts(table_of().keep_boxes(np.ones(6, bool)).facts, some_facts())


def test_tables_are_joined():
    one, other = table_of(), table_of(facts=dataclasses.replace(some_facts(), frequencies={1: "c"})).take(np.array([0]))
    both = joined([one, other], [np.array([0, 7, 0, 0, 0, 8]), np.array([0, 7, 0, 0, 0, 9])], [1, 1],
                  {7: "cat", 8: "dog", 9: "hen"})
    assert told(both) == ({1: ([8, 7], []), 2: ([], [8]), 3: ([7], []), 4: ([9, 7], [])}, [0, 0, 3, 4])
    assert both.facts.frequencies == {7: "r", 8: "f"} and both.facts.has_class_lists and both.facts.has_visible
    none = joined_facts([BenchmarkFacts(), BenchmarkFacts()])
    same_facts(none, BenchmarkFacts())


def as_lvis(content):
    for image in content["images"]:
        image |= {NEGATIVE: [1 + image["id"] % 3], NOT_EXHAUSTIVE: []}
    for category in content["categories"]:
        category["frequency"] = "rcf"[category["id"] - 1]
    content["annotations"][-1] |= {"ignore": 1, "vbox": [1, 2, 3, 4]}


@pytest.mark.parametrize("least", [0, 8 << 20])
def test_they_are_read_from_a_file_its_cache_and_a_share_of_it(tmp_path, monkeypatch, least):
    monkeypatch.setattr("datasets.cache.LEAST_BYTES", least)
    write_coco(tmp_path / "set", change=as_lvis)
    for _ in range(2):
        table = DetectionData(tmp_path / "set", cache_folder=tmp_path / "cache").split("train").table
        assert told(table) == ({i: ([1 + i % 3], []) for i in range(1, 7)}, [table.boxes[-1, 0]])
        assert table.facts.frequencies == {1: "r", 2: "c", 3: "f"} and table.facts.has_visible
    assert len(list((tmp_path / "cache").glob("*"))) == (least == 0)
    (tmp_path / "set/annotations/instances_val2017.json").unlink()
    for path in (tmp_path / "set/val2017").iterdir():
        path.unlink()
    (tmp_path / "set/val2017").rmdir()
    data = DetectionData(tmp_path / "set", DataOptions(val_fraction=0.5))
    for split in ("train", "val"):
        part = data.split(split).table
        assert len(part) == 3 and told(part)[0] == {i: ([1 + i % 3], []) for i in part.ids.tolist()}


@pytest.mark.parametrize("read", [read_plainly, read_by_entry])
def test_a_set_that_was_written_from_a_table_has_them(tmp_path, read):
    (tmp_path / "x.json").write_text(json.dumps(table_of().content()))
    written = read(tmp_path / "x.json").table
    assert told(written) == told(table_of())
    same_facts(dataclasses.replace(written.facts, negative=some_facts().negative), some_facts())
