"""Every config key once: type, default, meaning. The only reader of the flat config.

Keys are grouped into dataclasses, and each part of the program receives its own group. `parse_options` checks names and
types and rejects keys that nothing reads; `python main.py --help` ends with this list.
"""
import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from util.errors import UserError, nearest

# What config key aug_phases can name; the meaning of each is in datasets/phases.py.
Augmented = Literal["mosaic", "mixup", "copy_paste", "scale_jitter", "extra", "color", "crop"]


def key(default: Any, meaning: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """A config key: its default, a one-line meaning, and the range of the number, or of each number in a list or
    dict."""
    metadata = {"meaning": meaning, "least": least, "most": most}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class BackboneOptions:
    backbone: str = key("resnet50", "resnet18|34|50|101, swin_T_224_1k and larger, "
                                    "convnext_xlarge_22k, or timm:NAME")
    return_interm_indices: list[int] = key([1, 2, 3], "stages that become feature levels, 0..3 = strides 4..32")
    dilation: bool = key(False, "ResNet: dilated last stage at stride 16 (DC5)")
    pretrained_backbone: bool = key(True, "start from ImageNet weights")
    backbone_dir: str | None = key(None, "file or folder with local ImageNet weights, instead of a download")
    backbone_freeze_keywords: list[str] | None = key(None, "freeze backbone parameters with such a word in the name")
    drop_path_rate: float = key(0.2, "Swin: part of the residual paths that the last block drops in training", least=0,
                                most=1)
    use_checkpoint: bool = key(False, "recompute the backbone's activations in the backward pass, to save memory")


@dataclass(frozen=True)
class PositionOptions:
    position_embedding: Literal["sine", "v2", "learned", "v3"] = key("sine", "position encoding of the feature maps")
    pe_temperatureH: float = key(20, "temperature of the sine encoding along the height")
    pe_temperatureW: float = key(20, "temperature of the sine encoding along the width")
    pe_centres: bool = key(False, "sine: encode pixel centres, as Deformable DETR does, instead of their far edges")


@dataclass(frozen=True)
class TransformerOptions:
    hidden_dim: int = key(256, "channels of the transformer", least=1)
    nheads: int = key(8, "attention heads", least=1)
    num_feature_levels: int = key(4, "feature levels of the transformer; convolutions make those the backbone lacks",
                                  least=1)
    dim_feedforward: int = key(2048, "hidden channels of the feed-forward blocks", least=1)
    dropout: float = key(0.0, "dropout in the transformer", least=0, most=1)
    pre_norm: bool = key(False, "global attention: normalise the input of each block instead of its output")
    transformer_activation: Literal["relu", "gelu"] = key("relu", "activation of the feed-forward blocks")
    key_aware: bool | None = key(None, "key-aware deformable attention; None: on if the encoder is interleaved")
    deformable_use_checkpoint: bool = key(False, "recompute the transformer layers' activations in the backward pass, "
                                                 "to save memory")


@dataclass(frozen=True)
class EncoderOptions:
    encoder: str | None = key(None, "name in models.encoders.ENCODERS. None: global in DETR and SDETR; elsewhere "
                                    "interleaved where num_expansion is set, else deformable")
    enc_layers: int | list[int] = key(6, "total encoder layers; SDETR: per stage, one number or a list", least=0)
    dim_feedforward_enc: int | None = key(None, "hidden channels of the encoder's feed-forward blocks; None: "
                                                "dim_feedforward", least=1)
    enc_n_points: int = key(4, "sampling points per level and head", least=1)
    same_loc: bool = key(False, "a head's sampling offsets are the same on every level")
    proj_key: bool = key(False, "key-aware attention: a key projection of its own, instead of values used as keys")
    num_expansion: int | None = key(None, "interleaved encoder: number of blocks, each ending with a layer over all "
                                          "tokens; must divide enc_layers. None: every layer updates all tokens")
    enc_scale: int = key(3, "interleaved encoder: how many of the coarsest levels are high-level")
    small_expand: bool = key(True, "interleaved encoder: a small feed-forward block for the low-level tokens")

    @property
    def depth(self) -> int:
        """enc_layers of a model with a single encoder. Raises UserError if it is a list."""
        return _single("enc_layers", self.enc_layers)


@dataclass(frozen=True)
class DecoderOptions:
    decoder: str | None = key(None, "name in models.decoders.DECODERS; None: the detector's own")
    dec_layers: int | list[int] = key(6, "decoder layers; stacked models: per stage, one number or a list", least=1)
    dim_feedforward_dec: int | None = key(None, "hidden channels of the decoder's feed-forward blocks; None: "
                                                "dim_feedforward", least=1)
    dec_n_points: int = key(4, "sampling points per level and head", least=1)
    dec_pred_bbox_embed_share: bool = key(True, "all decoder layers share one box head")
    dec_pred_class_embed_share: bool = key(True, "all decoder layers share one class head")
    use_detached_boxes_dec_out: bool = key(False, "no gradient from a layer's box to the previous layer")
    num_queries: int = key(900, "queries, at most the number of tokens", least=1)
    two_stage_bbox_embed_share: bool = key(False, "encoder proposals use the decoder's box head")
    two_stage_class_embed_share: bool = key(False, "encoder proposals use the decoder's class head")
    embed_init_tgt: bool = key(True, "learned query content (mixed query selection) instead of the selected tokens")

    @property
    def depth(self) -> int:
        """dec_layers of a model with a single decoder. Raises UserError if it is a list."""
        return _single("dec_layers", self.dec_layers)


@dataclass(frozen=True)
class StageOptions:
    stage_levels: list[list[int]] | None = key(None, "stacked models: the levels each stage reads; 0 is the finest")
    enc_nheads: list[int] | None = key(None, "SDETR: encoder heads per stage; None: nheads")
    dec_nheads: list[int] | None = key(None, "stacked models: decoder heads per stage; None: nheads")


@dataclass(frozen=True)
class DeformableDETROptions:
    with_box_refine: bool = key(False, "every decoder layer refines the boxes of the previous one")
    two_stage: bool = key(False, "queries start at the best encoder proposals; needs with_box_refine")
    mixed_selection: bool = key(False, "two_stage: query content is learned, query positions come from the proposals")
    look_forward_twice: bool = key(False, "with_box_refine: gradient from a layer's box to the previous layer")


@dataclass(frozen=True)
class OneToManyOptions:
    one2many: Literal["none", "branch", "shared"] | None = key(
        None, "in training, find each object several times: by a branch of further queries (H-DETR), or by further "
              "heads that share the queries (MS-DETR). None: branch where num_queries_one2many is set")
    num_queries_one2many: int = key(0, "branch: its queries", least=0)
    k_one2many: int = key(6, "queries matched to each object; shared: at most", least=1)
    lambda_one2many: float = key(1.0, "weight of the one-to-many losses", least=0)


@dataclass(frozen=True)
class DenoisingOptions:
    use_dn: bool = key(True, "contrastive denoising queries in training")
    dn_number: int = key(100, "approximate number of positive denoising queries per image; at least one group", least=0)
    dn_box_noise_scale: float = key(1.0, "box noise: 1 moves a positive box's corners by up to half a side", least=0)
    dn_label_noise_ratio: float = key(0.5, "twice the fraction of labels that are replaced", least=0)
    dn_labelbook_size: int | None = key(None, "number of label embeddings minus one; None: num_classes")


@dataclass(frozen=True)
class LossOptions:
    set_cost_class: float = key(2.0, "matcher: weight of the class cost", least=0)
    set_cost_bbox: float = key(5.0, "matcher: weight of the L1 box cost", least=0)
    set_cost_giou: float = key(2.0, "matcher: weight of the GIoU cost", least=0)
    cls_loss_coef: float = key(1.0, "weight of the classification loss", least=0)
    bbox_loss_coef: float = key(5.0, "weight of the L1 box loss", least=0)
    giou_loss_coef: float = key(2.0, "weight of the GIoU loss", least=0)
    interm_loss_coef: float = key(1.0, "weight of the encoder proposals' losses", least=0)
    no_interm_box_loss: bool = key(False, "no box losses for encoder proposals")
    classification: Literal["focal", "softmax", "vfl", "ia_bce", "mal", "position"] = key(
        "focal", "a sigmoid per class: focal, or one that learns the IoU of its box (vfl, ia_bce, mal, position); or a "
                 "softmax with \"no object\"")
    class_cost: Literal["focal", "position", "target"] | None = key(
        None, "matcher: class cost of the focal loss, of that times the box's position (Stable-DINO), or of the "
              "classification's own target. None: position for classification='position', else focal")
    eos_coef: float = key(0.1, "softmax: weight of unmatched queries", least=0)
    focal_alpha: float = key(0.25, "focal loss: weight of the positives")
    aux_loss: bool = key(True, "losses for every decoder layer, not only the last")


@dataclass(frozen=True)
class PostprocessOptions:
    num_select: int = key(300, "detections per image; with softmax, one per query", least=1)
    nms_iou_threshold: float = key(-1, "IoU threshold of the class-wise NMS; -1: no NMS", least=-1, most=1)


@dataclass(frozen=True)
class DataOptions:
    num_classes: int | Literal["auto"] = key(91, "largest category id + 1; 'auto': from the annotations",
                                             least=1)
    train_images: list[str] | None = key(None, "folders of training images, instead of --data; see docs/data.md")
    train_annotations: list[str] | None = key(None, "as many COCO files, folders of Pascal VOC's xml files, or folders "
                                                    "of YOLO's label files with classes.txt")
    val_images: list[str] | None = key(None, "the same for the val set")
    val_annotations: list[str] | None = key(None, "the same for the val set")
    test_images: list[str] | None = key(None, "the same for the test set")
    test_annotations: list[str] | None = key(None, "the same for the test set")
    val_fraction: float = key(0.0, "part of the training images that becomes the val set where there is none", least=0,
                              most=0.9)
    val_seed: int = key(0, "val_fraction: which images", least=0)
    data_aug_scales: list[int] = key([480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
                                     "training: shorter sides to choose from, px; evaluation uses the largest", least=1)
    data_aug_max_size: int = key(1333, "maximum longer side, px", least=1)
    data_aug_scales2_resize: list[int] = key([400, 500, 600], "training: shorter sides before a random crop, px",
                                             least=1)
    data_aug_scales2_crop: list[int] = key([384, 600], "training: minimum and maximum side of the random crop, px",
                                           least=1)
    data_aug_scale_overlap: float | None = key(None, "factor on all these sizes", least=0)
    data_aug_vertical_flip: bool = key(False, "training: vertical flips too, for images without an up or down")
    data_aug_color: float = key(0.0, "training: brightness, contrast and saturation change by up to this fraction",
                                least=0, most=1)
    data_aug_mosaic: float = key(0.0, "training: part of the samples that show four images in one", least=0, most=1)
    data_aug_mixup: float = key(0.0, "training: part of the samples that are blended with another image", least=0,
                                most=1)
    data_aug_copy_paste: float = key(0.0, "training: part of the samples that get objects of another image", least=0,
                                     most=1)
    data_aug_scale_jitter: float = key(0.0, "training: part of the samples that are scaled by 0.3 to 2, then cut or "
                                            "padded", least=0, most=1)
    data_aug_extra: str | None = key(None, "training: further transforms, as package.module:name or path/to/file.py:"
                                           "name of a function that makes them; see docs/data.md")
    aug_phases: dict[Augmented, tuple[float, float]] = key(
        {}, "training: from which fraction of it to which each of mosaic, mixup, copy_paste (without an entry: 0.04 to "
            "0.5), scale_jitter, extra, color and crop (0 to 1) is used", least=0, most=1)
    image_size: int | None = key(None, "maximum shorter side, px: the data_aug_ sizes follow from it and from the "
                                       "training images, which are not enlarged. None: those sizes as given", least=1)
    eval_size_factor: float = key(1.0, "evaluation: factor on the image size; slightly above 1 helps after training "
                                       "on small images", least=0.01)
    batch_size: int = key(2, "training images per batch and process", least=1)
    pad_multiple: int | None = key(None, "training: batch height and width are padded to multiples of this, px; None: "
                                         "32 on a GPU, where each new size costs time, 1 on a CPU", least=0)
    eval_batch_size: int = key(1, "evaluation images per batch and process", least=1)

    @property
    def class_count(self) -> int:
        """num_classes as a number. Raises UserError while it is still "auto" (see datasets.adapt)."""
        if self.num_classes == "auto":
            raise UserError("num_classes='auto' takes the classes from a data set: pass --data, or set a number")
        return self.num_classes


@dataclass(frozen=True)
class TrainingOptions:
    lr: float = key(1e-4, "learning rate", least=0)
    lr_backbone: float = key(1e-5, "learning rate of the backbone; 0 freezes it", least=0)
    param_dict_type: Literal["default", "ddetr_in_mmdet", "large_wd"] = key("default", "how parameters are grouped")
    lr_backbone_names: list[str] = key(["backbone.0"], "parameters that use lr_backbone")
    lr_linear_proj_names: list[str] = key(["reference_points", "sampling_offsets"],
                                          "ddetr_in_mmdet: parameters that use lr * lr_linear_proj_mult")
    lr_linear_proj_mult: float = key(0.1, "see lr_linear_proj_names", least=0)
    weight_decay: float = key(1e-4, "AdamW weight decay", least=0)
    clip_max_norm: float = key(0.1, "maximum gradient norm; 0: no clipping")
    grad_accum_steps: int = key(1, "batches per optimizer step", least=1)
    ddp_bf16: bool = key(False, "several processes exchange gradients in bfloat16: half the traffic, rounded sums")
    epochs: int = key(12, "training epochs", least=1)
    epoch_steps: int | None = key(None, "optimizer steps per epoch, whatever the size of the data set; None: one pass "
                                        "over the images", least=1)
    warmup_steps: int = key(0, "optimizer steps of learning-rate warm-up; one-cycle: 0 means a fifth of the "
                               "training", least=0)
    lr_drop: int = key(11, "epoch at which the learning rate drops to a tenth")
    multi_step_lr: bool = key(False, "drop at each epoch of lr_drop_list instead")
    lr_drop_list: list[int] = key([33, 45], "see multi_step_lr")
    onecyclelr: bool = key(False, "one-cycle schedule, per step, instead")
    save_checkpoint_interval: int = key(1, "epochs between numbered checkpoints; checkpoint.pth is written every epoch",
                                        least=1)
    keep_best: int = key(0, "numbered checkpoints that are kept for their val AP, the best so far, beside those of "
                            "save_checkpoint_interval; tools/average_checkpoints.py averages them", least=0)
    checkpoint_steps: int = key(1000, "optimizer steps between writes of checkpoint.pth within an epoch; 0: never")
    early_stop: int | None = key(None, "stop after this many evaluations in a row without a better val AP", least=1)
    eval_interval: int = key(1, "epochs between evaluations; the last epoch is always evaluated", least=1)
    use_ema: bool = key(False, "keep an exponential moving average of the weights, and evaluate it")
    ema_decay: float = key(0.9997, "decay of the average per optimizer step", least=0, most=1)
    ema_warmup_steps: int | None = key(None, "steps N over which the average slows down: its n-th decay is ema_decay * "
                                             "(1 - exp(-n / N)). None: min(ema_decay, (1 + n) / (10 + n))", least=1)
    ema_epoch: int = key(0, "first epoch that is averaged", least=0)
    amp: Literal["flag", "cuda"] = key("flag", "mixed precision: only with --amp, or always on GPUs")
    amp_dtype: Literal["auto", "bfloat16", "float16"] = key("auto", "half precision: bfloat16 where supported, else "
                                                                    "float16")


@dataclass(frozen=True)
class EvaluationOptions:
    evaluator: Literal["auto", "hotcoco", "faster_coco_eval", "pycocotools"] = key(
        "auto", "program that computes AP; auto: the fastest that is installed")
    metrics: Literal["auto", "coco", "lvis", "crowdhuman"] = key(
        "auto", "rules of LVIS, or the miss rate of CrowdHuman; auto: by what the annotation file says")
    max_dets: int | None = key(None, "best detections per class in an image that count, for images with more than 100 "
                                     "objects. None: 100; LVIS: 300 in an image", least=100)


@dataclass(frozen=True)
class Options:
    """The values of all config keys, in groups. `modelname` chooses the detector in models.MODELS."""

    modelname: str
    backbone: BackboneOptions
    position: PositionOptions
    transformer: TransformerOptions
    encoder: EncoderOptions
    decoder: DecoderOptions
    stages: StageOptions
    deformable_detr: DeformableDETROptions
    one_to_many: OneToManyOptions
    denoising: DenoisingOptions
    loss: LossOptions
    postprocess: PostprocessOptions
    data: DataOptions
    training: TrainingOptions
    evaluation: EvaluationOptions

    @property
    def encoder_width(self) -> int:
        """Hidden channels of the encoder's feed-forward blocks."""
        return self.encoder.dim_feedforward_enc or self.transformer.dim_feedforward

    @property
    def decoder_width(self) -> int:
        """Hidden channels of the decoder's feed-forward blocks."""
        return self.decoder.dim_feedforward_dec or self.transformer.dim_feedforward

    def to_dict(self) -> dict[str, Any]:
        """Every config key with its value, flat: `parse_options` turns it back into equal options."""
        keys: dict[str, Any] = {"modelname": self.modelname}
        for group in GROUPS:
            keys |= copy.deepcopy(vars(getattr(self, group)))
        return keys

    def replaced(self, **keys: Any) -> "Options":
        """The same options except for some keys, whose values are taken as they are."""
        unknown = set(keys) - set(KEYS)
        if unknown:
            raise TypeError(f"no config keys: {sorted(unknown)}")
        groups = {}
        for name, group in GROUPS.items():
            own = {field.name: keys[field.name] for field in dataclasses.fields(group) if field.name in keys}
            groups[name] = dataclasses.replace(getattr(self, name), **own)
        return dataclasses.replace(self, **groups)


# Keys of the published configs for features that are not built here: accepted only at the values that mean "off".
RETIRED: dict[str, tuple] = {
    "frozen_weights": (None,), "masks": (False,), "mask_loss_coef": (1.0,), "dice_loss_coef": (1.0,),
    "unic_layers": (0,), "query_dim": (4,), "num_patterns": (0,),
    "pdetr3_bbox_embed_diff_each_layer": (False,), "pdetr3_refHW": (-1,), "random_refpoints_xy": (False,),
    "fix_refpoints_hw": (-1,), "dabdetr_yolo_like_anchor_update": (False,), "dabdetr_deformable_encoder": (False,),
    "dabdetr_deformable_decoder": (False,), "use_deformable_box_attn": (False,), "box_attn_type": ("roi_align",),
    "dec_layer_number": (None,), "decoder_layer_noise": (False,), "dln_xy_noise": (0.2,), "dln_hw_noise": (0.2,),
    "add_channel_attention": (False,), "add_pos_value": (False,), "two_stage_type": ("standard",),
    "two_stage_pat_embed": (0,), "two_stage_add_query_num": (0,), "two_stage_learn_wh": (False,),
    "two_stage_default_hw": (0.05,), "two_stage_keep_all_tokens": (False,), "two_stage_binary_cls": (False,),
    "batch_norm_type": ("FrozenBatchNorm2d",), "enc_loss_coef": (1.0,), "decoder_sa_type": ("sa",),
    "matcher_type": ("HungarianMatcher",), "decoder_module_seq": (["sa", "ca", "ffn"],),
    "dec_layer_dropout_prob": (None,), "ddetr_lr_param": (False,), "match_unstable_error": (True, False),
    "rm_self_attn_layers": (None,),
    "rm_detach": (None,), "num_patterns_dn": (0,), "use_detached_boxes": (False,), "pe_temperature": (20,),
    "use_pytorch_version": (False, True),  # of the operator, which computes the same
    "value_proj_after": (False,), "drop_lr_now": (False,),
    "num_topk": (1000,), "dn_scalar": (100,), "dn_label_coef": (1.0,), "dn_bbox_coef": (1.0,),  # never read there
}
GROUPS: dict[str, type] = {name: hint for name, hint in typing.get_type_hints(Options).items() if name != "modelname"}
KEYS: dict[str, dataclasses.Field] = {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}
_KEY_HINTS = {name: hint for group in GROUPS.values() for name, hint in typing.get_type_hints(group).items()}


def parse_options(config: Mapping[str, Any]) -> Options:
    """Groups the keys of a config and fills in defaults.

    Raises UserError for an unknown key (with the nearest known name), a value of the wrong type, and a retired key
    that is not off.
    """
    for name, value in config.items():
        if name in RETIRED:
            if value not in RETIRED[name]:
                raise UserError(f"config key {name}={value!r} is not supported here; the only value is "
                                f"{RETIRED[name][0]!r}")
        elif name not in KEYS and name != "modelname":
            raise UserError(f"unknown config key {name!r}.{nearest(name, [*KEYS, *RETIRED, 'modelname'])}")
    groups: dict[str, Any] = {}
    for group_name, group in GROUPS.items():
        given = {field.name: checked(field.name, config[field.name]) for field in dataclasses.fields(group)
                 if field.name in config}
        groups[group_name] = group(**given)
    options = Options(modelname=_typed("modelname", config.get("modelname", "dino"), str), **groups)
    if options.stages.stage_levels is None:
        for name, layers in (("enc_layers", options.encoder.enc_layers), ("dec_layers", options.decoder.dec_layers)):
            _single(name, layers)
    for name, (start, end) in options.data.aug_phases.items():
        if start >= end:
            raise UserError(f"config key aug_phases: {name!r} must end after it starts, not {(start, end)}")
    if options.transformer.key_aware is None:
        options = options.replaced(key_aware=options.encoder.num_expansion is not None)
    if options.one_to_many.one2many is None:
        options = options.replaced(one2many="branch" if options.one_to_many.num_queries_one2many else "none")
    return options


def checked(name: str, value: Any) -> Any:
    """The value of a known key, converted to its type where that is exact. Raises UserError if the value does not
    fit."""
    return _bounded(KEYS[name], _typed(name, value, _KEY_HINTS[name]))


def changed_keys(saved: Mapping[str, Any], options: Options) -> dict[str, tuple[Any, Any]]:
    """The keys whose value differs from the one in a config that was saved with a checkpoint: (saved value, new one).

    Keys that are not in `saved`, or only there, do not count; nor does a saved None that meant "choose by the other
    keys".
    """
    changed = {}
    for name, value in options.to_dict().items():
        if name not in saved or (name in ("key_aware", "one2many") and saved[name] is None):
            continue
        try:
            before = saved[name] if name == "modelname" else checked(name, saved[name])
        except UserError:  # of a version that allowed it
            before = saved[name]
        if before != value:
            changed[name] = before, value
    return changed


def describe_keys() -> str:
    """The list of keys for --help."""
    lines = []
    for group_name, group in GROUPS.items():
        lines.append(f"  {group_name}:")
        for name, default in vars(group()).items():
            lines.append(f"    {name} = {default!r}: {KEYS[name].metadata['meaning']}")
    return "\n".join(lines)


def _single(name: str, layers: int | list[int]) -> int:
    if isinstance(layers, list):
        raise UserError(f"config key {name}={layers!r} must be int: only stages (stage_levels) have one each")
    return layers


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value, converted where that is exact (2 for 2.0, a tuple for a list, one item for a list of it)."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    choices = typing.get_args(hint) if is_union else (hint,)
    for choice in choices:
        converted = _convert(value, choice)
        if converted is not _UNFIT:
            return converted
    wanted = " or ".join(_describe(choice) for choice in choices)
    raise UserError(f"config key {name}={value!r} must be {wanted}")


def _bounded(field: dataclasses.Field, value: Any) -> Any:
    """The value, if all its numbers are in the range of the key."""
    least, most = field.metadata["least"], field.metadata["most"]
    for item in _items(value):
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"config key {field.name}={value!r} must be a finite number")
        if isinstance(item, (int, float)) and not least <= item <= most:
            wanted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"config key {field.name}={value!r} must be {wanted}")
    return value


def _items(value: Any) -> list:
    """The single values in a list, a tuple or a dict's values, however nested."""
    if isinstance(value, dict):
        value = list(value.values())
    return [item for part in value for item in _items(part)] if isinstance(value, (list, tuple)) else [value]


_UNFIT = object()


def _convert(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        return value if value in typing.get_args(hint) else _UNFIT
    if typing.get_origin(hint) is list:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        converted = [_convert(item, typing.get_args(hint)[0]) for item in items]
        return _UNFIT if value is None or _UNFIT in converted else converted
    if typing.get_origin(hint) is tuple:
        items = list(value) if isinstance(value, (list, tuple)) else []
        converted = [_convert(item, kind) for item, kind in zip(items, typing.get_args(hint))]
        return _UNFIT if len(items) != len(typing.get_args(hint)) or _UNFIT in converted else tuple(converted)
    if typing.get_origin(hint) is dict:
        names, kind = typing.get_args(hint)
        pairs = [(_convert(name, names), _convert(item, kind)) for name, item in value.items()] if isinstance(
            value, Mapping) else [(_UNFIT, _UNFIT)]
        return _UNFIT if any(_UNFIT in pair for pair in pairs) else dict(pairs)
    if hint is types.NoneType:
        return None if value is None else _UNFIT
    if isinstance(value, bool) or hint is bool:
        return value if isinstance(value, bool) and hint is bool else _UNFIT
    if hint is float and isinstance(value, (int, float)):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, hint) else _UNFIT


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return "a list of " + _describe(item).replace("a list", "lists")
    if typing.get_origin(hint) is tuple:
        return f"({', '.join(map(_describe, typing.get_args(hint)))})"
    if typing.get_origin(hint) is dict:
        name, item = typing.get_args(hint)
        return f"a dict of {_describe(name)} to {_describe(item)}"
    return "None" if hint is types.NoneType else hint.__name__
