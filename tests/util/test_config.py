"""Config files: inheritance, typed --options, errors that name the file, and a dump that reads back equal."""
import copy
import pickle
import re
from pathlib import Path

import pytest

from util.config import Config, load_config, parse_pairs
from util.errors import UserError
from util.options import parse_options as group_options

SHIPPED = ["config/DINO/DINO_4scale.py", "config/DINO/DINO_4scale_swinT.py",
           *sorted(str(path) for path in Path("config/LiteDINO").glob("*.py"))]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path
    return write


def refused(path, options=None):
    with pytest.raises(UserError) as error:
        load_config(path, options)
    return str(error.value)


# bases

def test_a_file_wins_over_its_base_and_that_over_its_own(write):
    write("root.py", "a, b, c = 1, 1, 1")
    write("middle/middle.py", "_base_ = ['../root.py']\nb, c = 2, 2")
    top = write("top.py", "_base_ = 'middle/middle.py'\nc = 3")
    assert load_config(top) == {"a": 1, "b": 2, "c": 3}


def test_of_several_bases_the_last_wins(write):
    write("one.py", "a, b = 1, 1")
    write("two.py", "b = 2")
    assert load_config(write("top.py", "_base_ = ['one.py', 'two.py']")) == {"a": 1, "b": 2}


def test_two_bases_may_share_one(write):
    write("root.py", "a = 1")
    write("left.py", "_base_ = ['root.py']\nleft = 1")
    write("right.py", "_base_ = ['root.py']\nright = 1")
    assert load_config(write("top.py", "_base_ = ['left.py', 'right.py']")) == {"a": 1, "left": 1, "right": 1}


def test_dicts_merge_key_by_key_and_all_else_is_replaced(write):
    write("base.py", "d = dict(x=1, deep=dict(y=2, z=[1, 2])); was_dict = dict(a=1); was_int = 1")
    top = write("top.py", "_base_ = ['base.py']\nd = dict(deep=dict(z=[3])); was_dict = 5; was_int = dict(b=2)")
    assert load_config(top) == {"d": {"x": 1, "deep": {"y": 2, "z": [3]}}, "was_dict": 5, "was_int": {"b": 2}}


@pytest.mark.parametrize("names", [["a.py"], ["a.py", "b.py"], ["a.py", "b.py", "c.py"]])
def test_circular_bases_are_named(write, names):
    for name, base in zip(names, names[1:] + names[:1], strict=True):
        path = write(name, f"_base_ = ['{base}']")
    text = refused(path)
    assert "circular" in text and all(name in text for name in names)


def test_a_missing_base_is_named_with_the_file_that_wants_it(write):
    write("coco.py", "")
    text = refused(write("top.py", "_base_ = ['cocoo.py']"))
    assert "cocoo.py" in text and "top.py" in text and "Did you mean 'coco.py'?" in text


def test_a_missing_file_gives_the_nearest_name(write, tmp_path):
    write("DINO_4scale.py", "")
    assert "Did you mean 'DINO_4scale.py'?" in refused(tmp_path / "DINO_4scal.py")
    assert "no config file" in refused(tmp_path / "no_folder" / "x.py")
    assert "no config file" in refused(tmp_path)


@pytest.mark.parametrize("text, kind", [("a = 1 +", "SyntaxError"), ("a = missing", "NameError"),
                                        ("import no_such_module", "ModuleNotFoundError"), ("\0", "Error")])
def test_a_file_that_does_not_run_is_named(write, text, kind):
    write("broken.py", text)
    message = refused(write("top.py", "_base_ = ['broken.py']"))
    assert "broken.py" in message and kind in message


def test_only_values_become_keys(write):
    config = load_config(write("c.py", "import os\nfrom math import sqrt\nfrom pathlib import Path\n_hidden = 1\n"
                                       "def double(x): return 2 * x\nclass Thing: pass\na = double(sqrt(4))"))
    assert config == {"a": 4}


# options

@pytest.mark.parametrize("text, value", [
    ("3", 3), ("-1", -1), ("1e-4", 1e-4), ("0.5", 0.5), ("2.", 2.0),
    ("True", True), ("false", False), ("None", None), ("null", None),
    ("[1,2]", [1, 2]), ("[1, 2.5]", [1, 2.5]), ("[]", []), ("(1,2)", (1, 2)), ("()", ()),
    ("[a,b]", ["a", "b"]), ("[a]", ["a"]), ("a,b", ["a", "b"]), ("(a, b)", ("a", "b")),
    ("[backbone.0,none,3]", ["backbone.0", None, 3]), ("['a', 'b']", ["a", "b"]),
    ("resnet50", "resnet50"), ("'3'", "3"), ("timm:convnext_tiny", "timm:convnext_tiny"), ("/a/b c.pth", "/a/b c.pth"),
    ("", ""), ("[", "["), ("a=b", "a=b"), ("{'x': 1}", {"x": 1}),
])
def test_option_values_get_types(text, value):
    parsed = parse_pairs([f"key={text}"])["key"]
    assert parsed == value and type(parsed) is type(value)


def test_bare_numbers_with_commas_are_a_sequence():
    assert list(parse_pairs(["data_aug_scales=480,512"])["data_aug_scales"]) == [480, 512]


def test_options_split_at_the_first_equals_sign():
    assert parse_pairs(["url=https://x/?a=1&b=2", " lr = 0.1 "]) == {"url": "https://x/?a=1&b=2", "lr": 0.1}


@pytest.mark.parametrize("pair", ["lr", "=3", "", "lr:3"])
def test_options_without_key_and_value_are_refused(pair):
    with pytest.raises(UserError, match="key=value"):
        parse_pairs(["a=1", pair])


def test_options_win_over_the_file_and_reach_into_dicts(write):
    path = write("c.py", "a = 1\nd = dict(x=dict(y=1, z=2))")
    config = load_config(path, parse_pairs(["a=2", "d.x.y=one=two", "new.key=[3]"]))
    assert config == {"a": 2, "d": {"x": {"y": "one=two", "z": 2}}, "new": {"key": [3]}}
    assert (config.d.x.y, config.new.key) == ("one=two", [3])
    assert load_config(path) == {"a": 1, "d": {"x": {"y": 1, "z": 2}}}


def test_an_option_inside_something_that_is_no_dict_is_refused(write):
    text = refused(write("c.py", "a = 1"), {"a.b": 2})
    assert "a.b" in text and "c.py" in text


def test_an_option_that_is_a_dict_has_attributes_too(write):
    assert load_config(write("c.py", "a = 1"), {"d": {"x": {"y": 1}}}).d.x.y == 1


# access

def test_a_missing_key_is_an_error_with_the_nearest_name():
    config = Config(num_classes=91, d={"inner": 1})
    with pytest.raises(AttributeError, match="num_clases.*Did you mean 'num_classes'"):
        config.num_clases  # noqa: B018
    with pytest.raises(AttributeError, match="iner.*Did you mean 'inner'"):
        config.d.iner  # noqa: B018
    with pytest.raises(KeyError):
        config["missing"]
    assert not hasattr(config, "missing") and config == {"num_classes": 91, "d": {"inner": 1}}


def test_a_dump_reads_back_equal(write, tmp_path):
    values = {"i": 1, "f": 1e-05, "big": 1e20, "n": None, "b": True, "t": (1, 2), "one": (1,), "empty": {},
              "words": ["it's", 'a "b"', "tab\t", "ä"], "long": list(range(300)), "d": {"x": {"y": [1, {"z": 2}]}}}
    config = load_config(write("c.py", ""), values)
    config.dump(tmp_path / "dump.py")
    again = load_config(tmp_path / "dump.py")
    assert again == config == values
    assert type(again.t) is tuple and again.d.x.y[1].z == 2
    assert again.text() == config.text()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_are_equal_and_as_strict(write, duplicate):
    config = load_config(write("c.py", "a = 1; d = dict(x=dict(y=[2]))"))
    again = duplicate(config)
    assert type(again) is Config and again == config and again.d.x.y == [2]
    assert not hasattr(again.d, "missing")
    again.a = 2
    assert config.a == 1


# the files we ship, and those of the published code

BACKBONES = {"swint": "swin_T_224_1k", "swinb": "swin_B_384_22k", "swinl": "swin_L_384_22k",
             "convnextxl": "convnext_xlarge_22k"}


@pytest.mark.parametrize("path", SHIPPED)
def test_shipped_configs_are_options_and_survive_a_dump(path, tmp_path):
    config = load_config(path)
    options = group_options(config)
    assert options.modelname == "dino" and options.data.num_classes == 91
    named = [backbone for word, backbone in BACKBONES.items() if word in path.lower()]
    assert options.backbone.backbone == (named or ["resnet50"])[0]
    config.dump(tmp_path / "dump.py")
    assert group_options(load_config(tmp_path / "dump.py")) == options


@pytest.mark.parametrize("path", [path for path in SHIPPED if "LiteDINO" in path])
def test_lite_configs_are_what_their_names_say(path):
    high, low, updates, blocks = map(int, re.search(r"h(\d)l(\d)_(\d)p1x(\d)", path).groups())
    options = group_options(load_config(path))
    assert options.encoder.enc_scale == high
    assert options.transformer.num_feature_levels == high + low
    assert options.encoder.num_expansion == blocks
    assert options.encoder.enc_layers == updates * blocks
    assert options.transformer.key_aware


def test_both_backbones_of_the_paper_have_all_three_forms():
    names = {Path(path).stem for path in SHIPPED}
    assert names >= {f"{backbone}_{form}" for backbone in ("r50", "swint")
                     for form in ("h3l1_2p1x3", "h3l1_6p1x1", "h2l2_2p1x3")}
