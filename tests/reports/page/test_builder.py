"""report.html as a browser shows it: its numbers must be those of reports/error_analysis.py."""
import json
import re

import numpy as np
import pytest
from PIL import Image

from reports.error_analysis import KINDS, confusion_matrix, operating_points, tide_errors
from reports.page.builder import as_json
from reports.page.content import LEAST_SCORE, OUTCOMES, size_of, subjects
from tests.reports.page.scene import CLASSES, coco_of, scene, write_report

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;'\"\u2028.png"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Ground truth, path and matches of a report."""
    coco, detections = scene()
    path, matches = write_report(tmp_path_factory.mktemp("report"), coco, detections)
    return coco, path, matches


@pytest.fixture
def page(browser_page, example):
    """The report, opened; no error and no request but for the file itself is allowed until the end of the test."""
    browser_page.page.goto(example[1].as_uri())
    yield browser_page.page
    assert browser_page.errors == [] and browser_page.requests == [example[1].as_uri()]


def choose(page, threshold=None, label=None, size=None, search=None, kind=None):
    """As a user does. label, size: index or -1."""
    if threshold is not None:
        page.fill("#threshold", str(threshold))
    if label is not None:
        page.select_option("#label", str(label))
    if size is not None:
        page.select_option("#size", str(size))
    if search is not None:
        page.fill("#search", search)
    if kind is not None:
        page.click(f'#kinds [data-kind="{OUTCOMES.index(kind)}"]')
    page.evaluate("new Promise(requestAnimationFrame)")  # numbers follow before the next picture


def counts(page):
    """By kind of error."""
    numbers = page.eval_on_selector_all("#kinds b", "all => all.map(b => [b.parentNode.dataset.kind, b.textContent])")
    return {OUTCOMES[int(kind)]: int(text) for kind, text in numbers}


def matrix(page):
    rows = page.eval_on_selector_all(
        ".matrix tbody tr", "rows => rows.map(r => [...r.querySelectorAll('td')].map(c => c.textContent))")
    return np.array([[int(cell or 0) for cell in row] for row in rows])


def tiles(page):
    """Precision, recall and F1 in percent, as texts."""
    return [page.text_content(f'[data-name="{name}"]') for name in ("Precision", "Recall", "F1")]


def rounded(*shares):
    """Percent with one digit; halves may be rounded to either side."""
    return pytest.approx([100 * share for share in shares], abs=0.0501)


def shown_files(page):
    return page.eval_on_selector_all(".card", "all => all.map(card => report.names[card.dataset.image])")


def kinds_of(matches, threshold):
    errors = tide_errors(matches.only(matches.scores >= threshold))
    return {kind: errors.counts[kind] for kind in KINDS}


# What the browser has no part in

def test_json_cannot_end_its_element():
    text = as_json({"name": HOSTILE, "damaged": "\udcff"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"name": HOSTILE, "damaged": "\udcff"}


def test_the_file_is_one_and_allows_nothing_else(example):
    text = example[1].read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data: blob:;") and "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"@(policy|style|script|report)@", text)


# What the browser shows

def test_numbers_follow_the_threshold(page, example):
    _, _, matches = example
    for threshold in (0.3, 0.05, 0.5, 0.61, 1):
        choose(page, threshold)
        assert {kind: counts(page)[kind] for kind in KINDS} == kinds_of(matches, threshold)
        assert counts(page)["found"] == (matches.found[matches.scores >= threshold] >= 0).sum()
        assert (matrix(page) == confusion_matrix(matches, threshold)).all()
    page.focus("#slider")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.input_value("#threshold") == "0.06"
    assert {kind: counts(page)[kind] for kind in KINDS} == kinds_of(matches, 0.06)


@pytest.mark.slow
def test_a_class_at_its_best_score_has_the_numbers_of_its_operating_point(page, example):
    _, _, matches = example
    for label, point in enumerate(operating_points(matches)):
        page.click(f"#classes tbody tr:nth-child({label + 1}) td:last-child button")
        assert page.input_value("#label") == str(label)
        assert float(page.input_value("#threshold")) == pytest.approx(point.score, abs=1e-3)
        assert [float(text) for text in tiles(page)] == rounded(point.precision, point.recall, point.f1)
        row = page.eval_on_selector_all(f"#classes tbody tr:nth-child({label + 1}) td",
                                        "all => all.map(cell => cell.innerText)")
        assert row[1:5] == [str(matches.boxes[label]), *tiles(page)]
        expected = confusion_matrix(matches, float(page.input_value("#threshold")))
        others = np.arange(len(expected)) != label
        expected[np.ix_(others, others)] = 0  # a class leaves its row and its column
        assert (matrix(page) == expected).all()


@pytest.mark.slow
def test_the_curve_has_precision_and_recall_of_every_score(page, example):
    _, _, matches = example
    for label in (-1, 0, 1, 2):
        choose(page, label=label)
        mine = (matches.scores >= LEAST_SCORE) & ~matches.ignored & ((label < 0) | (matches.labels == label))
        boxes = (matches.truth == label).sum() if label >= 0 else len(matches.truth)
        points = page.evaluate("precisionRecall(report, view)")
        assert [point["score"] for point in points] == sorted(set(matches.scores[mine]), reverse=True)
        for point in points:
            kept = mine & (matches.scores >= point["score"])
            found = (matches.found[kept] >= 0).sum()
            assert (point["precision"], point["recall"]) == pytest.approx((found / kept.sum(), found / boxes))
        assert page.locator("#curve path.line").count() == page.locator("#curve circle").count() == 1


@pytest.mark.slow
def test_sizes_are_those_of_the_boxes_or_of_what_finds_none(page, example):
    coco, _, matches = example
    truth_sizes = size_of(np.array([a["area"] for a in coco.anns.values() if not a["iscrowd"]]))
    own = size_of(matches.bboxes[:, 2:].prod(1))
    sizes = np.where(matches.found >= 0, truth_sizes[matches.found], own)
    shown = matches.scores >= 0.3
    total = np.zeros((4, 4), int)
    for size in range(3):
        choose(page, size=size)
        for kind in ("background", "duplicate", "localization", "found"):
            ours = page.evaluate(f"view.counts[report.outcome.{kind}]")
            outcome = np.array(page.evaluate("Array.from(report.detections.outcome)"))
            mine = (outcome == OUTCOMES.index(kind)) & shown[:len(outcome)] & (sizes[:len(outcome)] == size)
            assert ours == mine.sum()
        recall = (truth_sizes[matches.found[shown & (matches.found >= 0)]] == size).sum() / (truth_sizes == size).sum()
        assert [float(tiles(page)[1])] == rounded(recall)
        total += matrix(page)
    assert (total == confusion_matrix(matches, 0.3)).all()  # each entry has one size


@pytest.mark.slow
def test_kinds_and_names_choose_images(page, example):
    coco, _, matches = example
    assert len(shown_files(page)) == 10
    choose(page, kind="background")
    wrong = matches.only((matches.scores >= 0.3) & (matches.found < 0) & ~matches.ignored & (subjects(matches) < 0))
    costs = {coco.imgs[image]["file_name"]: wrong.scores[wrong.images == image].sum() for image in set(wrong.images)}
    assert shown_files(page) == sorted(costs, key=lambda name: -costs[name])
    page.select_option("#sort", "confidence")
    surest = {coco.imgs[image]["file_name"]: wrong.scores[wrong.images == image].max() for image in set(wrong.images)}
    assert shown_files(page) == sorted(surest, key=lambda name: (-surest[name], -costs[name]))
    page.select_option("#sort", "name")
    assert shown_files(page) == sorted(costs)

    choose(page, search="A")
    assert shown_files(page) == [name for name in sorted(costs) if name.startswith("a")]
    page.click("#clear")
    choose(page, search="a")
    assert shown_files(page) == ["a10.png", "a2.png", "a4.png", "a6.png", "a8.png"]
    named = confusion_matrix(matches.only(np.array([image % 2 == 0 for image in matches.images])), 0.3)
    assert (matrix(page)[:, :-1] == named[:, :-1]).all()
    choose(page, search="nowhere")
    assert shown_files(page) == [] and page.text_content("#found") == "0 images"
    page.click("#clear")
    assert len(shown_files(page)) == 10 and page.is_hidden("#clear")


@pytest.mark.slow
def test_a_cell_of_the_matrix_shows_its_images(page, example):
    coco, _, matches = example
    located = np.where(matches.located >= 0, matches.truth[matches.located], -1)
    confused = matches.only((matches.scores >= 0.3) & (located == 1) & (matches.labels == 0))
    assert len(confused.scores) == int(page.text_content('[data-cell="1,0"]')) > 0
    page.click('[data-cell="1,0"]')
    assert set(shown_files(page)) == {coco.imgs[image]["file_name"] for image in confused.images}
    assert page.get_attribute('[data-cell="1,0"]', "aria-pressed") == "true"
    strong = page.eval_on_selector_all("#gallery .detection.strong", "all => all.length")
    assert strong == len(confused.scores)
    page.click('[data-cell="1,0"]')
    assert len(shown_files(page)) == 10


@pytest.mark.slow
def test_boxes_follow_threshold_and_ground_truth(page, example):
    coco, _, matches = example
    page.select_option("#sort", "name")
    first = next(image for image, listed in coco.imgs.items() if listed["file_name"] == "a10.png")
    boxes = len(coco.imgToAnns[first])
    for threshold in (0.2, 0.7):
        choose(page, threshold)
        drawn = (matches.scores[matches.images == first] >= threshold).sum()
        assert page.locator(".card").first.locator("g.detection").count() == drawn
        assert page.locator(".card").first.locator("g.truth, g.crowd").count() == boxes
    page.uncheck("#truth")
    assert page.locator("#gallery g.truth, #gallery g.crowd").count() == 0
    assert page.locator(".card").first.locator("image").get_attribute("href").startswith("data:image/jpeg;base64,")


@pytest.mark.slow
def test_the_large_view_by_keyboard(page):
    order = shown_files(page)
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    assert page.text_content("#large_title") == order[0] and page.text_content("#large_place") == "1 of 10"
    assert page.locator("#large .label text").count() > 3
    assert page.locator("#large_items tr").count() == page.locator("#large g[data-item]:not(.label)").count()
    page.keyboard.press("ArrowRight")
    assert page.text_content("#large_title") == order[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#large_title") == order[-1]
    assert page.locator("#large g.truth").count() > 0
    page.keyboard.press("g")
    assert page.locator("#large g.truth").count() == 0 and not page.is_checked("#truth")
    page.locator("#large_items tr").first.focus()
    assert page.locator("#large g.lit").count() >= 1
    page.keyboard.press("Escape")
    assert page.is_hidden("#large")
    # a browser reports that a dialog is closed some time after it has hidden it
    page.wait_for_function("document.activeElement.dataset.image === String(current)", timeout=10_000)


@pytest.mark.slow
def test_the_users_own_folder_shows_the_images_in_full(browser_page, tmp_path):
    coco, detections = scene(images=2)
    path, _ = write_report(tmp_path, coco, detections, pictures=False)
    page = browser_page.page
    page.goto(path.as_uri())
    assert page.locator(".card .absent").count() == 2
    assert "Pictures of 0 images of 2 are inside this file" in page.text_content("#note")
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (400, 300), "red").save(images / "b1.png")
    page.set_input_files("#folder", images)
    assert page.locator(".card .absent").count() == 1
    assert page.locator(".card image").get_attribute("href").startswith("blob:")
    assert browser_page.errors == [] and {url[:5] for url in browser_page.requests} <= {"file:", "blob:"}


@pytest.mark.slow
def test_the_users_own_folder_shows_no_namesakes(browser_page, tmp_path):
    """Which folder was opened, the browser does not tell."""
    coco, detections = scene(images=3)
    for image, name in zip(coco.imgs.values(), ("a/1.png", "b/1.png", "b/2.png")):
        image["file_name"] = name
    path, _ = write_report(tmp_path, coco, detections, pictures=False)
    browser_page.page.goto(path.as_uri())
    (tmp_path / "b").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (400, 300), "red").save(tmp_path / "b" / name)
    browser_page.page.set_input_files("#folder", tmp_path / "b")
    absent = browser_page.page.evaluate("report.names.filter((_, i) => pictureOf(i) === undefined)")
    assert absent == ["a/1.png", "b/1.png"]


@pytest.mark.slow
def test_hostile_names_are_texts(browser_page, tmp_path):
    coco, detections = scene(images=3)
    for image in coco.imgs.values():
        image["file_name"] = f"{image['id']}{HOSTILE}"
    for category in coco.cats.values():
        category["name"] = f"{category['id']}{HOSTILE}"
    facts = {HOSTILE: HOSTILE, "odd": "@script@\udcff"}
    path, _ = write_report(tmp_path, coco, detections, pictures=False, facts=facts)
    page = browser_page.page
    page.goto(path.as_uri())
    page.locator(".card").first.click()
    assert HOSTILE in page.text_content("#large_title") and HOSTILE in page.text_content("#facts")
    assert HOSTILE in page.locator("#classes tbody th").first.text_content()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert browser_page.errors == [] and len(browser_page.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("images, annotated, detected", [(3, True, False), (3, False, True), (1, True, True),
                                                         (0, False, False)])
def test_an_evaluation_without_much(browser_page, tmp_path, images, annotated, detected):
    coco, detections = scene(images=images)
    if not annotated:
        coco = coco_of([image["file_name"] for image in coco.imgs.values()], [])
    detections = {image: rows if detected else [] for image, rows in detections.items()}
    path, matches = write_report(tmp_path, coco, detections)
    page = browser_page.page
    page.goto(path.as_uri())
    assert len(shown_files(page)) == images
    assert {kind: counts(page)[kind] for kind in KINDS} == kinds_of(matches, 0.3)
    assert (matrix(page) == confusion_matrix(matches, 0.3)).all()
    assert page.locator("#curve path.line").count() == int(annotated and detected)
    if images:
        page.locator(".card").first.click()
        page.keyboard.press("ArrowRight")
        assert page.is_visible("#large_title")
    assert browser_page.errors == []


@pytest.mark.slow
def test_many_classes_show_the_most_confused(browser_page, tmp_path):
    coco, detections = scene(images=3)
    classes = CLASSES | {i: f"class {i}" for i in range(10, 40)}
    rows = [(a["image_id"], a["category_id"], a["bbox"], a["iscrowd"]) for a in coco.anns.values()]
    path, matches = write_report(tmp_path, coco_of([image["file_name"] for image in coco.imgs.values()], rows, classes),
                                 detections)
    browser_page.page.goto(path.as_uri())
    assert matrix(browser_page.page).shape == (11, 11)
    assert (matrix(browser_page.page)[:3, :3] == confusion_matrix(matches, 0.3)[:3, :3]).all()
    assert "Of 33 classes, the 10" in browser_page.page.text_content("#matrix_note")
    assert browser_page.errors == []
