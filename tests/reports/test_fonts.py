"""Class names in other scripts: with the fonts that matplotlib brings, of which none has Chinese or Korean letters."""
import itertools

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image

from reports import fonts
from reports.drawing import draw_detections, draw_targets
from reports.fonts import BASE, best_font, columns_of, escaped, families, font_for, shown_names
from reports.plots import plot_confusion_matrix
from tests.reports.pictures import found, grey, truth

CATS_AND_DOGS = [("cat", "dog"), ("кот", "пёс"), ("γάτα", "πουλ"), ("قطة", "كلب"),
                 ("猫咪", "小狗"), ("고양이", "강아지")]


@pytest.fixture(autouse=True)
def bundled_fonts(monkeypatch):
    """Without the fonts of this machine."""
    bundled = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    caches = fonts._fonts, best_font, font_for
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def letters(font):
    return FT2Font(font.fname).get_charmap().keys()


def test_latin_greek_cyrillic_and_arabic_are_written_as_they_are():
    for name in itertools.chain(*CATS_AND_DOGS[:4]):
        assert best_font(name).name == BASE and escaped(name) == name
    assert families(["cat", "кот"]) == [BASE]


def test_another_font_is_taken_for_letters_that_the_first_one_lacks():
    (other,) = [font for font in fonts._fonts() if font.name == "STIXGeneral"]
    letter = chr(min(letters(other) - letters(best_font(""))))
    assert best_font(f"a {letter}").name in families(["a", letter])[1:]
    assert ord(letter) in letters(best_font(f"a {letter}")) and escaped(f"a {letter}") == f"a {letter}"
    assert font_for(letter, 12).getname() != font_for("a", 12).getname()


def test_a_font_of_boxes_for_all_letters_is_none():
    assert not any("Last Resort" in font.name for font in fonts._fonts())
    assert escaped("猫 cat\U0010fffd") == r"\u732b cat\U0010fffd"


def test_what_cannot_be_shown_has_its_id():
    assert shown_names({1: "cat", 2: "猫", 3: "a\nb", 4: "\ud800"}, 20) == {
        1: "cat", 2: r"2: \u732b", 3: r"3: a\nb", 4: r"4: \ud800"}


@pytest.mark.parametrize("one, other", [
    ("a long name that ends with A", "a long name that ends with B"), ("caf\u00e9", "cafe\u0301"), ("a b", "a  b "),
    ("ab", "a\u200bb"), ("same", "same"), ("고양이 그림 가", "고양이 그림 나")])
def test_names_that_would_look_alike_are_told_apart(one, other):
    shown = shown_names({7: one, 8: other, 9: "different"}, 20)
    assert shown[7].startswith("7: ") and shown[8].startswith("8: ") and shown[9] == "different"
    assert max(map(len, shown.values())) <= 20
    assert shown_names(shown, 20) == shown


def test_wide_letters_count_twice():
    assert columns_of("cat") == 3 and columns_of("猫고") == 4


@pytest.mark.parametrize("one, other", CATS_AND_DOGS[3:])
def test_no_two_names_make_the_same_picture(one, other, tmp_path):
    def pictures(name):
        yield draw_detections(grey(), truth(), found((50, 80, 200, 200)), {1: name})
        yield draw_detections(grey(), truth((50, 80, 200, 200)), found(), {1: name})
        target = found((50, 80, 200, 200))
        yield draw_targets(grey(), target["labels"], target["boxes"], {1: name})
        plot_confusion_matrix(np.eye(2, dtype=int), [name], "", tmp_path / "plot.png")
        yield Image.open(tmp_path / "plot.png")

    for picture, other_picture in zip(map(np.asarray, pictures(one)), map(np.asarray, pictures(other)), strict=True):
        assert picture.shape != other_picture.shape or (picture != other_picture).any()
