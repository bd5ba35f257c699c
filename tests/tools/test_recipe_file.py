import re

import pytest

from recipe_file import read_recipes
from util.errors import UserError


@pytest.fixture
def read(tmp_path, config_file):
    """read(text): the recipes of such a file."""
    def read(text, config=config_file):
        (tmp_path / "recipes.yaml").write_text(text, encoding="utf-8")
        return read_recipes(tmp_path / "recipes.yaml", config and str(config))
    return read


def test_recipes_are_read_in_order_and_values_as_on_the_command_line(read, config_file):
    recipes = read("""
        baseline:
        changed: {lr: 5e-4, use_ema: yes, data_aug_scales: [64, 96], backbone_freeze_keywords: ['a', 'b.0'],
                  early_stop: null, backbone: resnet34}
        """)
    assert [recipe.name for recipe in recipes] == ["baseline", "changed"]
    assert recipes[0].pairs == () and recipes[0].config == str(config_file)
    options = recipes[1].options
    assert options.training.lr == 5e-4 and options.training.use_ema is True and options.training.early_stop is None
    assert options.data.data_aug_scales == [64, 96] and options.backbone.backbone == "resnet34"
    assert options.backbone.backbone_freeze_keywords == ["a", "b.0"]
    assert options.training.epochs == recipes[0].options.training.epochs == 2  # of the config
    assert recipes[1].text.startswith(f"{config_file} lr=5e-4 use_ema=True data_aug_scales=[64, 96]")


def test_a_recipe_may_have_a_config_of_its_own(read):
    dino, sdetr = read("a: {config: config/DINO/DINO_4scale.py}\nb: {config: config/SDETR/sdetr_r50.py, lr: 1.0}",
                       config=None)
    assert (dino.options.modelname, sdetr.options.modelname) == ("dino", "sdetr") and sdetr.pairs == ("lr=1.0",)


def test_a_recipe_may_be_another_one_with_changes(read):
    base, changed = read("base: &base {lr: 1e-3, epochs: 9}\nchanged: {<<: *base, lr: 1e-4}")
    assert (base.options.training.lr, base.options.training.epochs) == (1e-3, 9)
    assert (changed.options.training.lr, changed.options.training.epochs) == (1e-4, 9)


@pytest.mark.parametrize("text, message", [
    ("a: {}\nb: {lrr: 1}", "recipe 'b': unknown config key 'lrr'. Did you mean 'lr'"),
    ("a: {}\nb: {lr: fast}", "recipe 'b': config key lr='fast' must be float"),
    ("a: {}\nb: {lr: -1}", "recipe 'b': config key lr=-1.0 must be at least 0"),
    ("a: {}\nb: {lr: .inf}", "recipe 'b': config key lr='inf' must be float"),
    ("a: {}\nb: {lr: 2020-01-01}", "recipe 'b': config key lr="),
    ("a: {}\nb: {lr: {x: 1}}", "recipe 'b': config key lr="),
    ("a: {}\nb: {3: 1}", "recipe 'b': 3 is no config key"),
    ("a: {}\nb: {config: nowhere.py}", "recipe 'b': no config file .*nowhere.py"),
    ("a: {}\nb: {config: 3}", "recipe 'b': it names no config file"),
    ("a: {}\nb: lr=3", "recipe 'b': 'lr=3' must be config keys"),
    ("a: {}\nb: [lr]", "recipe 'b': .* must be config keys"),
    ("a: {}\na: {lr: 1}", "line 2: 'a' is there twice"),
    ("a: {}\nb: {lr: 1,\n lr: 2}", "line 3: 'lr' is there twice"),
    ("a: {}\n? [x, y]\n: {}", "no YAML"),
    ("a: {}", "at least two recipes"), ("", "at least two recipes"), ("[a, b]", "at least two recipes"),
    ("a: {}\nb: {", "is no YAML: .* line 2"), ("a: !!python/object/apply:os.system [ls]\nb: {}", "is no YAML"),
    *((f"a: {{}}\n{name}: {{}}", "a recipe cannot be named") for name in (
        "../b", "/tmp/b", ".", "..", "''", "b/c", '"b\\\\c"', ".b", "true", "3", "recipes.md", "'b c'", '"b\\n"',
        "b" * 81)),
])
def test_a_wrong_file_is_named_with_its_recipe(read, text, message):
    with pytest.raises(UserError, match=f"recipes.yaml.*{message}"):
        read(text)


def test_a_recipe_without_any_config(read):
    with pytest.raises(UserError, match=re.escape("recipe 'a': it names no config file: pass -c CONFIG")):
        read("a: {}\nb: {}", config=None)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="none.yaml: No such file"):
        read_recipes(tmp_path / "none.yaml", "a.py")
    (tmp_path / "latin.yaml").write_bytes(b"\xe9: {}")
    with pytest.raises(UserError, match="latin.yaml is no YAML"):
        read_recipes(tmp_path / "latin.yaml", "a.py")
