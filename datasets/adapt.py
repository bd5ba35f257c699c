"""Config values that follow from the data: num_classes='auto' and the image sizes for `image_size`."""
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from datasets.coco import CocoFolder, check_num_classes, class_names
from util.errors import UserError
from util.options import DataOptions, Options, checked

SIZES = ("data_aug_scales", "data_aug_max_size", "data_aug_scales2_resize", "data_aug_scales2_crop")


def adapt_options(options: Options, data: CocoFolder | None, split: str,
                  checkpoint: Mapping[str, Any] | None = None) -> Options:
    """The options with numbers for these values: the ones that the checkpoint was trained with, if there is one, else
    those of the `split` ("train", "val", "test") of the data.

    Raises UserError where there is neither, if num_classes is too small for the data, and if sizes were set together
    with image_size.
    """
    checkpoint = checkpoint or {}
    saved = checkpoint.get("config", {})
    coco = None if data is None else data.annotations(split)
    learned = max(checkpoint["class_names"]) + 1 if "class_names" in checkpoint else saved.get("num_classes")
    if options.data.num_classes == "auto":
        if learned is not None:
            options = options.replaced(num_classes=learned)
        elif coco is not None:
            options = options.replaced(num_classes=max(class_names(coco)) + 1)
        else:
            raise UserError("num_classes='auto' takes the classes from a data set: pass --coco_path, or "
                            "--options num_classes=N")
    if data is not None and coco is not None:
        source, largest = f"the {split} set of {data.root}", max(class_names(coco))
        if options.data.num_classes == learned and learned <= largest:
            raise UserError(f"the checkpoint was trained for category ids below {learned}, but {source} has the id "
                            f"{largest}: evaluate it on data with its classes, or start a training on this data from "
                            "it with --pretrain_model_path")
        check_num_classes(options.data.class_count, coco, source)
    if options.data.image_size is not None:
        check_sizes(options.data)
        if all(name in saved for name in SIZES):
            sizes = {name: checked(name, saved[name]) for name in SIZES}
        else:
            sizes = fitting_sizes(options.data.image_size, coco.dataset["images"] if coco else [])
        options = options.replaced(image_size=None, **sizes)  # the sizes take its place
    return options


def check_sizes(data: DataOptions) -> None:
    """Raises UserError if sizes were set together with image_size, which would replace them."""
    chosen = [name for name in SIZES if getattr(data, name) != getattr(DataOptions(), name)]
    if data.image_size is not None and chosen:
        raise UserError(f"image_size={data.image_size} would replace {', '.join(chosen)}: add image_size=None to use "
                        "them")


def fitting_sizes(image_size: int, images: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """DETR's sizes for images of 800 px, scaled to a shorter side of image_size px, or to the median of the images'
    shorter sides if that is less. images: entries with "width" and "height".
    """
    sides = [min(image["width"], image["height"]) for image in images]
    factor = min([image_size] + ([statistics.median(sides)] if sides else [])) / 800
    scaled = {"data_aug_scales": range(480, 801, 32), "data_aug_scales2_resize": (400, 500, 600),
              "data_aug_scales2_crop": (384, 600)}
    sizes = {name: [max(1, round(size * factor)) for size in values] for name, values in scaled.items()}
    return sizes | {"data_aug_max_size": max(1, round(1333 * factor))}
