"""What an annotation file says: derived where it is unmistakable, left alone or refused where it is not."""
import json

import pytest

from datasets.annotations import doubtful_boxes, entry_problems, read_content, usable_annotations
from tests.datasets.coco_sets import CROWD, edited, every, untouched, worth
from util.errors import UserError

IMAGES = {1: {"id": 1, "width": 100, "height": 80}, 2: {"id": 2, "width": 400, "height": 600}}


def rows(boxes, image_id=2):
    return [{"id": i, "image_id": image_id, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for i, box in enumerate(boxes, 1)]


def read(tmp_path, **content):
    whole = {"images": [image | {"file_name": f"{i}.jpg"} for i, image in IMAGES.items()],
             "categories": [{"id": 1, "name": "cat"}], "annotations": []} | content
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(whole))
    return read_content(tmp_path / "annotations/instances_train2017.json")


def annotation(tmp_path, **values):
    """An annotation as it is read, and the kinds of what was derived."""
    whole = rows([(10, 10, 20, 20)])[0] | values
    content, derived = read(tmp_path, annotations=[{k: v for k, v in whole.items() if v != "absent"}])
    return content["annotations"][0], {problem.kind for problem in derived}, list(entry_problems(content))


@pytest.mark.parametrize("name, value, wanted, kind", [
    ("area", 150, 150, None), ("area", 400.3, 400.3, None), ("area", 0.5, 0.5, None), ("area", "150", 150, "number"),
    ("area", None, 400, "area"), ("area", "absent", 400, "default"), ("area", 900, 400, "area"),
    ("area", 0, 400, "area"),
    ("iscrowd", 1, 1, None), ("iscrowd", True, 1, "crowd"), ("iscrowd", "1", 1, "crowd"), ("iscrowd", 1.0, 1, "crowd"),
    ("iscrowd", None, 0, "crowd"), ("iscrowd", "", 0, "crowd"), ("iscrowd", "absent", 0, "default"),
    ("image_id", "2", 2, "number"), ("image_id", 2.0, 2, "number"), ("image_id", "2.0", 2, "number"),
    ("category_id", "1", 1, "number"), ("category_id", 1.0, 1, "number"), ("id", None, 1, "annotation_id"),
    ("bbox", ["10", "10", "20", "20"], [10, 10, 20, 20], "number"), ("segmentation", None, None, None)])
def test_what_is_unmistakable_is_derived(tmp_path, name, value, wanted, kind):
    found, derived, problems = annotation(tmp_path, **{name: value})
    assert found[name] == wanted and type(found[name]) is type(wanted) or name == "area" and found[name] == wanted
    assert derived == ({kind} if kind else set()) and not problems


@pytest.mark.parametrize("name, value, kind", [
    ("iscrowd", 2, "not_a_crowd"), ("iscrowd", "perhaps", "not_a_crowd"), ("iscrowd", [1], "not_a_crowd"),
    ("image_id", "two", "unknown_image"), ("image_id", True, "unknown_image"), ("image_id", None, "unknown_image"),
    ("image_id", "absent", "incomplete"), ("category_id", True, "unknown_category"),
    ("category_id", 1.5, "unknown_category"), ("bbox", [1, 2, 3], "not_a_box"), ("bbox", "1 2 3 4", "not_a_box"),
    ("bbox", [1, 2, 3, True], "not_a_box"), ("bbox", [1, 2, 3, 10**400], "not_a_box"), ("bbox", {}, "not_a_box"),
    ("bbox", "absent", "incomplete"), ("area", "large", "not_a_box"), ("area", [1], "not_a_box")])
def test_what_may_mean_several_things_is_a_problem(tmp_path, name, value, kind):
    assert [problem.kind for problem in annotation(tmp_path, **{name: value})[2]] == [kind]


def test_a_missing_box_is_the_one_around_its_polygons(tmp_path):
    polygons = [[10, 20, 30, 20, 20, 50], [5, 30, 15, 30, 10, 70]]
    found, derived, problems = annotation(tmp_path, bbox="absent", segmentation=polygons)
    assert found["bbox"] == [5, 20, 25, 50] and derived == {"box"} and not problems
    for useless in ([[1, 2]], [], {"counts": "x"}, [[1, 2, 3, 4, 5, "x"]], [[1, 2, 3, 4, 5, 6, 7]]):
        assert annotation(tmp_path, bbox="absent", segmentation=useless)[2][0].kind == "incomplete"


@pytest.mark.parametrize("ids, references, wanted", [
    ([1.0, 2.0], [1.0, "2"], [1, 2]), (["1", "2"], [1, "2"], ["1", "2"]), ([1, "b"], [1, "b"], ["1", "b"]),
    (["007", "7"], ["007", 7], ["007", "7"]), ([2**64 - 1, 5], [str(2**64 - 1), 5], [2**64 - 1, 5]),
    ([0.5, 2], [0.5, 2], [0.5, 2])])
def test_image_ids_of_any_kind_meet(tmp_path, ids, references, wanted):
    content, _ = read(tmp_path, images=[{"id": i, "file_name": "a.jpg", "width": 100, "height": 80} for i in ids],
                      annotations=[a | {"image_id": i} for a, i in zip(rows([(1, 2, 3, 4)] * 2), references)])
    assert not list(entry_problems(content))
    for entries, name in ((content["images"], "id"), (content["annotations"], "image_id")):
        assert [entry[name] for entry in entries] == wanted
        assert [type(entry[name]) for entry in entries] == [type(value) for value in wanted]


def test_ids_that_become_the_same_are_refused(tmp_path):
    content, _ = read(tmp_path, images=[{"id": i, "file_name": "a.jpg", "width": 9, "height": 9} for i in (1, "1")])
    assert [problem.kind for problem in entry_problems(content)] == ["repeated_image_id"]
    with pytest.raises(UserError, match="the id 1 more than once"):
        read(tmp_path, categories=[{"id": i, "name": "cat"} for i in (1, "1")])


def test_one_area_for_all_is_no_area(tmp_path):
    boxes = rows([(10, 10, 20, 20), (10, 10, 30, 30), (10, 10, 20, 20)])
    for area in (1, 380.0, 10**6):
        content, derived = read(tmp_path, annotations=[a | {"area": area} for a in boxes])
        # 380 is the 400 px² of two boxes, rounded.
        assert [a["area"] for a in content["annotations"]] == [area if area == 380 else 400, 900,
                                                               area if area == 380 else 400]
        assert {problem.kind for problem in derived} == {"area"}
    content, derived = read(tmp_path, annotations=[a | {"area": 300 + i} for i, a in enumerate(boxes)])
    assert [a["area"] for a in content["annotations"]] == [300, 301, 302] and not derived


def test_category_ids_have_a_limit(tmp_path):
    for number, kinds in ((9_999, []), (10_000, ["large_category_id"])):
        content, _ = read(tmp_path, categories=[{"id": number, "name": "panel"}])
        assert [problem.kind for problem in entry_problems(content)] == kinds


def test_deeply_nested_json_is_no_crash(tmp_path):
    read(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not valid JSON"):
        read_content(tmp_path / "annotations/instances_train2017.json")


def test_boxes_are_cut_and_the_useless_dropped():
    boxes = [(10, 10, 20, 20), (-10, 70, 30, 30), (200, 10, 5, 5), (90, 10, 10.05, 20), (10, 10, 0, 5),
             (float("nan"), 1, 2, 3)]
    found, cut = usable_annotations(IMAGES, rows(boxes, 1))
    assert [a["id"] for a in found] == [1, 2, 4] and cut == 1  # the fourth by less than anyone sees
    assert [a["bbox"] for a in found] == [[10, 10, 20, 20], [0, 70, 20, 10], [90, 10, 10, 20]]
    assert [a["area"] for a in found] == [400, 200, 200]
    assert usable_annotations(IMAGES, []) == ([], 0)


SOUND = [(10 * i, 15 * i, 30 + i, 60) for i in range(30)]  # in 400 x 600 px
FORMATS = {
    "parts of the image": [(x / 400, y / 600, w / 400, h / 600) for x, y, w, h in SOUND],
    "per cent": [(x / 4, y / 6, w / 4, h / 6) for x, y, w, h in SOUND],
    "two corners": [(x, y, x + w, y + h) for x, y, w, h in SOUND],
    "a centre and a size": [(x + w / 2, y + h / 2, w, h) for x, y, w, h in [(300, 500, 100, 100), *SOUND] * 2
                            + [(250 + i, 450, 150 - i, 150) for i in range(9)]],
}


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_of_another_format_are_recognised(name):
    text = doubtful_boxes(IMAGES, rows(FORMATS[name]))
    assert f"look like {name}" in text and "[x, y, width, height] in pixels" in text


@pytest.mark.parametrize("boxes", [
    SOUND, [], [(0, 0, 1, 1)], [(5, 5, 60, 60)] * 30, [(0, 0, 400, 600)] * 5,
    [(x, y, 2 * w, h) for x, y, w, h in SOUND] + [(300, 100, 200, 50)] * 8, [(x - 30, y, w, h) for x, y, w, h in SOUND],
    [(float("nan"), 0, 1, 1)] * 5])
def test_sound_boxes_are_not_doubted(boxes):
    assert doubtful_boxes(IMAGES, rows(boxes)) is None


# what a training and an evaluation make of it


def test_areas_and_crowd_flags_have_defaults(root):
    with edited(root) as content:
        content["annotations"] = [{k: v for k, v in a.items() if k not in ("area", "iscrowd", "segmentation")}
                                  for a in content["annotations"]]
        del content["info"], content["licenses"]
    dataset = untouched(root)
    everything = dataset.coco.imgToAnns[CROWD + 1]
    _, target = dataset[CROWD]
    assert target["area"].tolist() == [a["bbox"][2] * a["bbox"][3] for a in everything]


def other_ids(new):
    def change(content):
        for image in content["images"]:
            image["id"] = new(image["id"])
        for annotation in content["annotations"]:
            annotation["image_id"] = new(annotation["image_id"])
    return change


OTHERWISE_WRITTEN = {
    **{f"area {value!r}": every(lambda a, value=value: a.update(area=value))
       for value in (None, 0, -1, 1.0, 1e12, float("nan"), float("inf"), "0", "nan")},
    "no area": every(lambda a: a.pop("area")), "area as text": every(lambda a: a.update(area=str(a["area"]))),
    "iscrowd as text": every(lambda a: a.update(iscrowd=str(a["iscrowd"]))),
    "iscrowd as bool": every(lambda a: a.update(iscrowd=bool(a["iscrowd"]))),
    "iscrowd null": every(lambda a: a.update(iscrowd=a["iscrowd"] or None)),
    "no iscrowd": every(lambda a: a["iscrowd"] or a.pop("iscrowd")),
    "boxes as text": every(lambda a: a.update(bbox=[str(x) for x in a["bbox"]])),
    "class ids as text": every(lambda a: a.update(category_id=str(a["category_id"]))),
    "class ids as floats": every(lambda a: a.update(category_id=float(a["category_id"]))),
    "image ids as text": every(lambda a: a.update(image_id=str(a["image_id"]))),
    "no annotation ids": every(lambda a: a.pop("id")),
    "segmentation null": every(lambda a: a.update(segmentation=None)),
    "image ids as floats": other_ids(float), "hashes of 64 bits": other_ids(lambda i: 2**64 - 2 * i),
    "hashes and small numbers": other_ids(lambda i: i if i % 2 else 2**63 + i),
    "hashes below 0 and above": other_ids(lambda i: (-1) ** i * (2**63 + i)),
    "texts": other_ids(lambda i: f"img_{i}"), "texts and numbers": other_ids(lambda i: i if i % 2 else f"img_{i}"),
    "numbers with fractions": other_ids(lambda i: i + 0.5),
    "a polygon for a box": every(lambda a: a.update(bbox=None, segmentation=[[
        a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1],
        a["bbox"][0] + a["bbox"][2] / 2, a["bbox"][1] + a["bbox"][3]]])),
}


@pytest.mark.parametrize("name", OTHERWISE_WRITTEN)
def test_what_is_written_otherwise_is_worth_the_same(root, name):
    with edited(root, "val") as content:
        every(lambda a: a.update(area=a["bbox"][2] * a["bbox"][3]))(content)
    wanted = [worth(root, shift) for shift in (0, 3)]
    assert wanted[0][0] == pytest.approx(1) and wanted[1][0] < 0.9
    with edited(root, "val") as content:
        OTHERWISE_WRITTEN[name](content)
    assert [worth(root, shift) for shift in (0, 3)] == [pytest.approx(numbers) for numbers in wanted]
