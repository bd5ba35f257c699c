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

PUBLISHED_BASE = """
data_aug_scales = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
data_aug_max_size = 1333
data_aug_scales2_resize = [400, 500, 600]
data_aug_scales2_crop = [384, 600]
data_aug_scale_overlap = None
"""

# config/DINO/DINO_4scale.py of IDEA-Research/DINO, key by key.
PUBLISHED = """
_base_ = ['coco_transformer.py']

num_classes=91

lr = 0.0001
param_dict_type = 'default'
lr_backbone = 1e-05
lr_backbone_names = ['backbone.0']
lr_linear_proj_names = ['reference_points', 'sampling_offsets']
lr_linear_proj_mult = 0.1
ddetr_lr_param = False
batch_size = 2
weight_decay = 0.0001
epochs = 12
lr_drop = 11
save_checkpoint_interval = 1
clip_max_norm = 0.1
onecyclelr = False
multi_step_lr = False
lr_drop_list = [33, 45]


modelname = 'dino'
frozen_weights = None
backbone = 'resnet50'
use_checkpoint = False

dilation = False
position_embedding = 'sine'
pe_temperatureH = 20
pe_temperatureW = 20
return_interm_indices = [1, 2, 3]
backbone_freeze_keywords = None
enc_layers = 6
dec_layers = 6
unic_layers = 0
pre_norm = False
dim_feedforward = 2048
hidden_dim = 256
dropout = 0.0
nheads = 8
num_queries = 900
query_dim = 4
num_patterns = 0
pdetr3_bbox_embed_diff_each_layer = False
pdetr3_refHW = -1
random_refpoints_xy = False
fix_refpoints_hw = -1
dabdetr_yolo_like_anchors = False
dabdetr_deformable_encoder = False
dabdetr_deformable_decoder = False
use_deformable_box_attn = False
box_attn_type = 'roi_align'
dec_layer_number = None
num_feature_levels = 4
enc_n_points = 4
dec_n_points = 4
decoder_layer_noise = False
dln_xy_noise = 0.2
dln_hw_noise = 0.2
add_channel_attention = False
add_pos_value = False
two_stage_type = 'standard'
two_stage_pat_embed = 0
two_stage_add_query_num = 0
two_stage_bbox_embed_share = False
two_stage_class_embed_share = False
two_stage_learn_wh = False
two_stage_default_hw = 0.05
two_stage_keep_all_tokens = False
num_select = 300
transformer_activation = 'relu'
batch_norm_type = 'FrozenBatchNorm2d'
masks = False
aux_loss = True
set_cost_class = 2.0
set_cost_bbox = 5.0
set_cost_giou = 2.0
cls_loss_coef = 1.0
mask_loss_coef = 1.0
dice_loss_coef = 1.0
bbox_loss_coef = 5.0
giou_loss_coef = 2.0
enc_loss_coef = 1.0
interm_loss_coef = 1.0
no_interm_box_loss = False
focal_alpha = 0.25

decoder_sa_type = 'sa' # ['sa', 'ca_label', 'ca_content']
matcher_type = 'HungarianMatcher' # or SimpleMinsumMatcher
decoder_module_seq = ['sa', 'ca', 'ffn']
nms_iou_threshold = -1

dec_pred_bbox_embed_share = True
dec_pred_class_embed_share = True

# for dn
use_dn = True
dn_number = 100
dn_box_noise_scale = 0.4
dn_label_noise_ratio = 0.5
embed_init_tgt = True
dn_labelbook_size = 91

match_unstable_error = True

# for ema
use_ema = False
ema_decay = 0.9997
ema_epoch = 0

use_detached_boxes_dec_out = False
"""


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
             "convnextxl": "timm:convnext_xlarge.fb_in22k"}


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


def test_a_published_config_is_accepted(write):
    write("coco_transformer.py", PUBLISHED_BASE)
    config = load_config(write("DINO_4scale.py", PUBLISHED))
    assert len(config) > 95
    options = group_options(config)
    assert options.denoising.dn_box_noise_scale == 0.4
    assert options.encoder.num_expansion is None and options.transformer.key_aware is False
    assert options.data.data_aug_scales[-1] == 800 and options.data.data_aug_scale_overlap is None
    lite = load_config(write("DINO_4scale.py", PUBLISHED), parse_pairs(["num_expansion=3", "enc_scale=1"]))
    assert group_options(lite).transformer.key_aware is True


@pytest.mark.parametrize("change", ["two_stage_type=no", "masks=True", "num_patterns=3", "decoder_sa_type=ca_label",
                                    "decoder_module_seq=[ca,sa,ffn]"])
def test_a_published_config_with_what_is_not_built_here_is_refused(write, change):
    write("coco_transformer.py", PUBLISHED_BASE)
    config = load_config(write("DINO_4scale.py", PUBLISHED), parse_pairs([change]))
    with pytest.raises(UserError, match=change.partition("=")[0]):
        group_options(config)
