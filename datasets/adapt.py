"""Config values that follow from the data: num_classes='auto' and the image sizes for `image_size`."""
import statistics
from collections.abc import Iterable
from typing import Any

from datasets.coco import check_num_classes, class_names, read_annotations
from util.config import Config
from util.errors import UserError
from util.options import DataOptions, parse_options

SIZES = ("data_aug_scales", "data_aug_max_size", "data_aug_scales2_resize", "data_aug_scales2_crop")


def adapt_config(config: Config, root: str | None, split: str, checkpoint: dict[str, Any] | None) -> None:
    """Replaces such values by numbers: the ones that the checkpoint was trained with, where there is one, else those
    of the `split` ("train", "val", "test") of the data in `root`.

    Raises UserError where there is neither, if num_classes is too small for the data, and if sizes were chosen beside
    an image_size.
    """
    options = parse_options(config)
    saved = (checkpoint or {}).get("config", {})
    coco = read_annotations(root, split) if root else None
    source = f"the {split} set of {root}"
    if "class_names" in (checkpoint or {}):
        learned = max(checkpoint["class_names"]) + 1
    else:
        learned = saved.get("num_classes")
    if options.data.num_classes == "auto":
        if learned is not None:
            config.num_classes = learned
        elif coco is not None:
            config.num_classes = max(class_names(coco)) + 1
        else:
            raise UserError("num_classes='auto' takes the classes from a data set: pass --coco_path, or "
                            "--options num_classes=N")
    if coco is not None:
        if config.num_classes == learned and learned <= max(class_names(coco)):
            raise UserError(f"the checkpoint was trained for category ids below {learned}, but {source} has the id "
                            f"{max(class_names(coco))}: evaluate it on data with its classes, or start a training on "
                            "this data from it with --pretrain_model_path")
        check_num_classes(config.num_classes, coco, source)
    if options.data.image_size is not None:
        check_sizes(options.data)
        if all(name in saved for name in SIZES):
            config.update({name: saved[name] for name in SIZES})
        else:
            config.update(fitting_sizes(options.data.image_size, coco.dataset["images"] if coco else []))
        config.image_size = None  # now the sizes say it all


def check_sizes(data: DataOptions) -> None:
    """Raises UserError if sizes were chosen beside an image_size, which would replace them."""
    chosen = [name for name in SIZES if getattr(data, name) != getattr(DataOptions(), name)]
    if data.image_size is not None and chosen:
        raise UserError(f"image_size={data.image_size} would replace {', '.join(chosen)}: add image_size=None, so that "
                        "they count")


def fitting_sizes(image_size: int, images: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """DETR's sizes for images of 800 px, in proportion for a shorter side of image_size px, or of the median of the
    images' shorter sides where that is less. Of an image, "width" and "height" matter.
    """
    sides = [min(image["width"], image["height"]) for image in images]
    factor = min([image_size] + ([statistics.median(sides)] if sides else [])) / 800
    scaled = {"data_aug_scales": range(480, 801, 32), "data_aug_scales2_resize": (400, 500, 600),
              "data_aug_scales2_crop": (384, 600)}
    sizes = {name: [max(1, round(size * factor)) for size in values] for name, values in scaled.items()}
    return sizes | {"data_aug_max_size": max(1, round(1333 * factor))}
