"""Tables: texts as arrays, images by rising id with their boxes, and parts of them."""
import numpy as np
import pytest

from datasets.table import Table, Texts, joined, make_table, to_coco

IDS = [7, 2, 2**62]


@pytest.fixture
def table():
    """Three images; the boxes of the second are given between those of the first, the third has none."""
    return make_table({1: "cat", 5: "dog"}, IDS, ["b.jpg", "日本.jpg", ""], np.array([(10, 20), (30, 40), (5.5, 6)]),
                      np.array([0, 1, 0, 1]), np.arange(16.0).reshape(4, 4), np.array([1, 5, 5, 1]),
                      np.array([1.5, 2, 3, 4]), np.array([0, 1, 0, 0]))


def test_texts_are_kept_as_they_are():
    names = ["", "a", "日本\n", "\udce9t", ""]
    texts = Texts.of(names)
    assert list(texts) == names and texts[-2] == "\udce9t" and texts[1:3] == ["a", "日本\n"]
    assert list(texts.take([2, 0])) == ["日本\n", ""] and len(Texts.of([])) == 0
    with pytest.raises(IndexError):
        texts[5]


def test_images_are_by_rising_id_and_their_boxes_in_order(table):
    assert [table.image_id(i) for i in range(3)] == sorted(IDS)
    assert list(table.file_names) == ["日本.jpg", "b.jpg", ""] and [table.size(i) for i in range(3)] == [
        (30, 40), (10, 20), (5.5, 6)]
    assert type(table.size(0)[0]) is int
    assert table.labels[table.boxes_of(0)].tolist() == [5, 1]
    assert table.boxes[table.boxes_of(1)][:, 0].tolist() == [0, 8]
    assert table.areas.tolist() == [2, 4, 1.5, 3] and table.crowds.tolist() == [True, False, False, False]
    assert table.images_of_boxes().tolist() == [0, 0, 1, 1] and not len(table.boxes[table.boxes_of(2)])


@pytest.mark.parametrize("ids", [["b", "a"], [2**64 - 1, 5], [-2**63 - 1, 0], [0.5, 0.25]])
def test_ids_of_any_kind_are_kept(ids):
    none = np.zeros(0, int)
    table = make_table({1: "cat"}, ids, ["x", "y"], np.ones((2, 2)), none, none, none, none, none)
    found = [table.image_id(i) for i in range(2)]
    assert found == sorted(ids) and [type(i) for i in found] == [type(ids[0])] * 2
    assert table.take(np.array([1])).image_id(0) == max(ids)


def test_parts_of_a_table(table):
    part = table.take(np.array([0, 2]))
    assert [part.image_id(i) for i in range(2)] == [2, 2**62] and part.starts.tolist() == [0, 2, 2]
    assert part.labels.tolist() == [5, 1] and list(part.file_names) == ["日本.jpg", ""]
    kept = table.keep_boxes(np.array([False, True, True, False]))
    assert kept.starts.tolist() == [0, 1, 2, 2] and kept.areas.tolist() == [4, 1.5] and len(kept) == 3


def test_the_content_is_that_of_a_coco_file(table):
    content = table.content()
    assert content["images"][0] == {"id": 2, "file_name": "日本.jpg", "width": 30, "height": 40}
    assert content["annotations"][1] == {"id": 2, "image_id": 2, "category_id": 1, "bbox": [12, 13, 14, 15], "area": 4,
                                         "iscrowd": 0}
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]
    coco = to_coco(content)
    assert [a["iscrowd"] for a in coco.imgToAnns[2]] == [1, 0] and coco.imgs[2**62]["width"] == 5.5


def test_tables_are_joined(table):
    both: Table = joined([table, table.take(np.array([1]))], [np.arange(6), np.array([0, 8, 0, 0, 0, 9])], [2, 1],
                         {1: "cat", 5: "dog", 8: "cow", 9: "hen"})
    assert both.ids.tolist() == [1, 2, 3, 4] and both.folders.tolist() == [0, 0, 0, 2]
    assert both.labels.tolist() == [5, 1, 1, 5, 8, 9] and both.starts.tolist() == [0, 2, 4, 4, 6]
    assert list(both.file_names) == ["日本.jpg", "b.jpg", "", "b.jpg"] and both.labels.dtype == np.int32
