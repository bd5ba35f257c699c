import dataclasses
import json
from pathlib import Path

import pytest

from models import MODELS
from util.config import Config, load_config
from util.errors import UserError
from util.options import GROUPS, KEYS, RETIRED, changed_keys, describe_keys, parse_options

# All keys of Lite-DETR's published config.
CONFIGS = json.loads(Path("tests/golden/published_configs.json").read_text(encoding="utf-8"))
PUBLISHED = CONFIGS["Lite-DETR/config/DINO/DINO_4scale.py"]


def parsed(name, value):
    options = parse_options({name: value})
    return next(getattr(getattr(options, group), name) for group in GROUPS if hasattr(getattr(options, group), name))


@pytest.mark.parametrize("name, value, expected", [
    ("dropout", 0, 0.0), ("dropout", 0.1, 0.1), ("enc_layers", 6.0, 6), ("use_dn", False, False),
    ("return_interm_indices", (1, 2), [1, 2]), ("return_interm_indices", 3, [3]), ("return_interm_indices", [1.0], [1]),
    ("lr_backbone_names", "backbone.0", ["backbone.0"]), ("backbone_freeze_keywords", None, None),
    ("backbone_freeze_keywords", ["bn", "layer1"], ["bn", "layer1"]), ("data_aug_scale_overlap", 1, 1.0),
    ("num_classes", "auto", "auto"), ("num_classes", 80.0, 80), ("num_expansion", None, None), ("num_expansion", 3, 3),
    ("stage_levels", [[2, 3], (1,), 0.0], [[2, 3], [1], [0]]), ("enc_nheads", 8, [8]),
    ("position_embedding", "learned", "learned"), ("key_aware", False, False), ("backbone_dir", "weights", "weights"),
])
def test_values_are_converted_where_that_is_exact(name, value, expected):
    result = parsed(name, value)
    assert result == expected and type(result) is type(expected)
    if isinstance(expected, list):
        assert [type(x) for x in result] == [type(x) for x in expected]


@pytest.mark.parametrize("name, value, wanted", [
    ("num_queries", 6.5, "int"), ("num_queries", "6", "int"), ("num_queries", True, "int"),
    ("num_queries", None, "int"), ("num_queries", [6], "int"), ("enc_layers", "6", "int or a list of int"),
    ("stage_levels", [["1"]], "a list of lists of int or None"),
    ("classification", "bce", "'focal' or 'softmax' or 'vfl' or 'ia_bce' or 'mal' or 'position'"),
    ("dropout", True, "float"), ("dropout", "0", "float"), ("dropout", None, "float"),
    ("dilation", 1, "bool"), ("dilation", "True", "bool"), ("key_aware", 1, "bool or None"), ("backbone", 50, "str"),
    ("return_interm_indices", None, "a list of int"), ("return_interm_indices", [1, "2"], "a list of int"),
    ("return_interm_indices", [1, True], "a list of int"), ("data_aug_scales", [480.5], "a list of int"),
    ("backbone_freeze_keywords", [1], "a list of str or None"), ("num_classes", "all", "int or 'auto'"),
    ("position_embedding", "cosine", "'sine' or 'v2' or 'learned' or 'v3'"),
])
def test_wrong_types_are_refused(name, value, wanted):
    with pytest.raises(UserError) as error:
        parse_options({name: value})
    assert str(error.value) == f"config key {name}={value!r} must be {wanted}"


@pytest.mark.parametrize("name, value, wanted", [
    ("batch_size", 0, "at least 1"), ("eval_interval", 0, "at least 1"), ("epochs", -3, "at least 1"),
    ("early_stop", 0, "at least 1"), ("num_classes", 0, "at least 1"), ("lr", -1e-4, "at least 0"),
    ("nms_iou_threshold", 1.5, "from -1 to 1"), ("nms_iou_threshold", -2, "from -1 to 1"),
    ("data_aug_scales", [480, 0], "at least 1"), ("dropout", 1.5, "from 0 to 1"),
    ("eval_size_factor", 0, "at least 0.01"), ("data_aug_scale_overlap", -1.0, "at least 0"),
    ("lr", float("inf"), "a finite number"), ("focal_alpha", float("nan"), "a finite number"),
    ("data_aug_mosaic", 1.1, "from 0 to 1"), ("data_aug_color", -0.1, "from 0 to 1"),
    ("ema_decay", 2, "from 0 to 1"), ("dec_layers", [6, 0], "at least 1"),
])
def test_numbers_out_of_range_are_refused(name, value, wanted):
    with pytest.raises(UserError, match="config key ") as error:
        parse_options({name: value, "stage_levels": [[1], [0]]})
    assert name in str(error.value) and str(error.value).endswith(f" must be {wanted}")


@pytest.mark.parametrize("name, value", [("lr", 0), ("lr_backbone", 0), ("early_stop", None), ("num_classes", "auto"),
                                         ("dropout", 1), ("enc_layers", 0), ("nms_iou_threshold", -1),
                                         ("clip_max_norm", -1), ("pad_multiple", 0)])
def test_the_ends_of_a_range_and_words_pass(name, value):
    assert parsed(name, value) == value


@pytest.mark.parametrize("name", ["enc_layers", "dec_layers"])
def test_a_list_of_layers_needs_stages(name):
    with pytest.raises(UserError, match=rf"{name}=\[3, 2\] must be int: only stages"):
        parse_options({name: [3, 2]})


def test_depths_of_stages():
    options = parse_options({"enc_layers": [3, 2], "dec_layers": 4, "stage_levels": [[1], [0]]})
    assert options.encoder.enc_layers == [3, 2] and options.decoder.dec_layers == 4


def test_one_number_of_layers_and_of_classes():
    options = parse_options({"enc_layers": [3, 2], "stage_levels": [[1], [0]], "num_classes": "auto"})
    assert options.decoder.depth == 6 and parse_options({"num_classes": 80}).data.class_count == 80
    with pytest.raises(UserError, match=r"enc_layers=\[3, 2\] must be int"):
        options.encoder.depth  # noqa: B018
    with pytest.raises(UserError, match="num_classes='auto'"):
        options.data.class_count  # noqa: B018


def test_options_are_replaced_and_never_changed():
    options = parse_options({"batch_size": 4})
    changed = options.replaced(batch_size=2, lr=0.5)
    assert (changed.data.batch_size, changed.training.lr, options.data.batch_size) == (2, 0.5, 4)
    assert changed.encoder == options.encoder
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.data.batch_size = 1
    with pytest.raises(TypeError, match="batchsize"):
        options.replaced(batchsize=1)


@pytest.mark.parametrize("path", sorted(Path("config").rglob("*.py")), ids=str)
def test_a_config_file_written_from_options_gives_equal_options(path, tmp_path):
    options = parse_options(load_config(path))
    keys = options.to_dict()
    assert set(keys) == set(KEYS) | {"modelname"}
    Config(keys).dump(tmp_path / "config.py")
    assert parse_options(load_config(tmp_path / "config.py")) == options
    keys["data_aug_scales"].append(0)  # the caller's own copy
    assert options == parse_options(load_config(path))


def test_changed_keys_of_a_saved_config():
    options = parse_options({"lr": 0.5, "epochs": 2, "num_expansion": 3, "return_interm_indices": (1, 2)})
    saved = {"lr": 1e-4, "epochs": 2.0, "key_aware": None, "num_expansion": 3, "return_interm_indices": (1, 2),
             "masks": False, "of_another_version": 1, "batch_size": 0}
    assert changed_keys(saved, options) == {"lr": (1e-4, 0.5), "batch_size": (0, 2)}


@pytest.mark.parametrize("phases, wanted", [
    ({}, {}), ({"mosaic": (0.1, 0.5)}, {"mosaic": (0.1, 0.5)}), ({"crop": [0, 1], "color": (0.5, 1)},
                                                               {"crop": (0.0, 1.0), "color": (0.5, 1.0)})])
def test_phases_of_augmentations(phases, wanted, tmp_path):
    options = parse_options({"aug_phases": phases})
    assert options.data.aug_phases == wanted
    Config(options.to_dict()).dump(tmp_path / "config.py")
    again = parse_options(load_config(tmp_path / "config.py", {"aug_phases.mixup": [0.2, 0.3]}))
    assert again.data.aug_phases == wanted | {"mixup": (0.2, 0.3)}
    assert parse_options(json.loads(json.dumps(options.to_dict()))) == options  # as a model card holds it


@pytest.mark.parametrize("phases, wanted", [
    ({"mosiac": (0, 0.5)}, "must be a dict of 'mosaic' or 'mixup'"), ({"mosaic": 0.5}, r"to \(float, float\)"),
    ({"mosaic": (0, 0.5, 1)}, r"to \(float, float\)"), ({"mosaic": ("0", 1)}, r"to \(float, float\)"),
    ([("mosaic", (0, 1))], "must be a dict"), ({"mosaic": (0, 1.5)}, "must be from 0 to 1"),
    ({"crop": (-0.5, 1)}, "must be from 0 to 1"), ({"crop": (0.5, 0.5)}, "'crop' must end after it starts"),
    ({"crop": (float("nan"), 1)}, "finite")])
def test_phases_that_cannot_be(phases, wanted):
    with pytest.raises(UserError, match=wanted) as error:
        parse_options({"aug_phases": phases})
    assert "aug_phases" in str(error.value)


def test_modelname_must_be_text():
    with pytest.raises(UserError, match="modelname"):
        parse_options({"modelname": 3})


@pytest.mark.parametrize("name, suggestion", [
    ("num_quries", "num_queries"), ("Dropout", "dropout"), ("query_dims", "query_dim"), ("model_name", "modelname"),
])
def test_unknown_key_names_the_nearest(name, suggestion):
    with pytest.raises(UserError, match=f"unknown config key '{name}'. Did you mean '{suggestion}'"):
        parse_options({name: 1})


def test_unknown_key_that_resembles_none():
    with pytest.raises(UserError) as error:
        parse_options({"xyzzy": 1})
    assert str(error.value) == "unknown config key 'xyzzy'."


def test_retired_keys_are_accepted_when_off():
    for name, values in RETIRED.items():
        for value in values:
            assert parse_options({name: value}) == parse_options({})


@pytest.mark.parametrize("name", RETIRED)
def test_retired_keys_are_refused_when_on(name):
    with pytest.raises(UserError, match=f"{name}='on' is not supported"):
        parse_options({name: "on"})


@pytest.mark.parametrize("name, value", [("masks", True), ("num_patterns", 1), ("two_stage_type", "no"),
                                         ("pdetr3_refHW", 40), ("decoder_module_seq", ["ca", "sa", "ffn"])])
def test_retired_keys_at_a_plausible_value(name, value):
    with pytest.raises(UserError, match=name):
        parse_options({name: value})


def test_every_key_is_described_once():
    fields = [field for group in GROUPS.values() for field in dataclasses.fields(group)]
    assert len({field.name for field in fields}) == len(fields), "a key in two groups"
    assert not set(KEYS) & set(RETIRED)
    lines = describe_keys().splitlines()
    for field in fields:
        meaning = field.metadata["meaning"]
        assert meaning and "\n" not in meaning, field.name
        assert [line for line in lines if line.startswith(f"    {field.name} = ") and line.endswith(f": {meaning}")]
    assert len(lines) == len(fields) + len(GROUPS)


def test_defaults_have_their_own_types():
    defaults = parse_options({})
    given = {name: getattr(getattr(defaults, group), name) for group, kind in GROUPS.items()
             for name in (field.name for field in dataclasses.fields(kind))}
    assert parse_options(given) == defaults


def test_list_defaults_are_not_shared():
    parse_options({}).data.data_aug_scales.append(1)
    assert 1 not in parse_options({}).data.data_aug_scales


def test_published_keys():
    options = parse_options(PUBLISHED)
    assert options.modelname == "dino"
    assert options.encoder.num_expansion == 3 and options.transformer.key_aware
    assert options.denoising.dn_labelbook_size == 91
    assert options.training.lr_backbone_names == ["backbone.0"]


@pytest.mark.parametrize("path", sorted(Path("config").rglob("*.py")), ids=str)
def test_config_files(path):
    options = parse_options(load_config(path))
    assert options.modelname in MODELS


def test_the_config_is_not_changed():
    config = {"modelname": "dino", "enc_layers": 6.0}
    parse_options(config)
    assert config == {"modelname": "dino", "enc_layers": 6.0}


@pytest.mark.parametrize("given, expected", [
    ({}, False), ({"num_expansion": 3}, True), ({"key_aware": None, "num_expansion": 3}, True),
    ({"key_aware": None, "num_expansion": None}, False), ({"key_aware": False, "num_expansion": 3}, False),
    ({"key_aware": True}, True),
])
def test_key_aware_follows_the_encoder(given, expected):
    assert parse_options(given).transformer.key_aware is expected
