"""Config values that follow from the data: num_classes='auto' and the image sizes for `image_size`."""
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets.coco import check_num_classes
from datasets.data import DetectionData
from util.class_names import COCO_CLASSES, ClassNames, disagreement
from util.errors import UserError
from util.options import DataOptions, Options, checked
from util.saved_state import MOST_CLASSES

logger = logging.getLogger(__name__)
SIZES = ("data_aug_scales", "data_aug_max_size", "data_aug_scales2_resize", "data_aug_scales2_crop")


def adapt_options(options: Options, data: DetectionData | None, split: str,
                  checkpoint: Mapping[str, Any] | None = None) -> Options:
    """The options with numbers for these values: the ones that the checkpoint was trained with, if there is one, else
    those of the `split` ("train", "val", "test") of the data.

    Raises UserError where there is neither, if num_classes is too small for the data, if the checkpoint's classes have
    other names than the data's, and if sizes were set together with image_size.
    """
    checkpoint = checkpoint or {}
    saved = checkpoint.get("config", {})
    table = None if data is None else data.split(split).table
    learned = saved.get("num_classes")
    if "class_names" in checkpoint:
        learned = max(checkpoint["class_names"]) + 1
    elif learned is not None and not (isinstance(learned, int) and 0 < learned <= MOST_CLASSES):
        raise UserError(f"the checkpoint's config says num_classes={learned!r}: it is damaged")
    if options.data.num_classes == "auto":
        if learned is not None:
            options = options.replaced(num_classes=learned)
        elif table is not None:
            options = options.replaced(num_classes=max(table.names) + 1)
        else:
            raise UserError("num_classes='auto' takes the classes from a data set: pass --data, or "
                            "--options num_classes=N")
    if data is not None and table is not None:
        source, largest = f"the {split} set of {data.root}", max(table.names)
        if options.data.num_classes == learned and learned <= largest:
            raise UserError(f"the checkpoint was trained for category ids below {learned}, but {source} has the id "
                            f"{largest}: evaluate it on data with its classes, or start a training on this data from "
                            "it with --pretrain_model_path")
        check_num_classes(options.data.class_count, table.names, source)
        _check_names(table.names, source, checkpoint, options.data.class_count)
    if options.data.image_size is not None:
        check_sizes(options.data)
        if all(name in saved for name in SIZES):
            sizes = {name: checked(name, saved[name]) for name in SIZES}
        else:
            sizes = fitting_sizes(options.data.image_size, [] if table is None else table.sizes)
        options = options.replaced(image_size=None, **sizes)  # the sizes take its place
    return options


def _check_names(names: ClassNames, source: str, checkpoint: Mapping[str, Any], num_classes: int) -> None:
    """Raises UserError if the checkpoint's classes have other names than the data's. A released one has no names: what
    has COCO's number of classes probably means COCO's."""
    if "class_names" in checkpoint:
        found = disagreement(names, source, checkpoint["class_names"], "the checkpoint")
        if found:
            raise UserError(f"{found}. An evaluation needs the ids that the checkpoint was trained with: correct them "
                            "in the annotation file")
    elif checkpoint and num_classes == len(COCO_CLASSES):
        found = disagreement(names, source, COCO_CLASSES, "COCO, whose number of classes the checkpoint has,")
        if found:
            logger.warning("%s: the AP is near 0 if the checkpoint was trained on COCO", found)


def check_sizes(data: DataOptions) -> None:
    """Raises UserError if sizes were set together with image_size, which would replace them."""
    chosen = [name for name in SIZES if getattr(data, name) != getattr(DataOptions(), name)]
    if data.image_size is not None and chosen:
        raise UserError(f"image_size={data.image_size} would replace {', '.join(chosen)}: add image_size=None to use "
                        "them")


def fitting_sizes(image_size: int, image_sizes: Iterable[Sequence[float]]) -> dict[str, Any]:
    """DETR's sizes for images of 800 px, scaled to a shorter side of image_size px, or to the median of the images'
    shorter sides if that is less. image_sizes: (width, height) of the images.
    """
    sides = [min(size) for size in image_sizes]
    factor = min([image_size] + ([statistics.median(sides)] if sides else [])) / 800
    scaled = {"data_aug_scales": range(480, 801, 32), "data_aug_scales2_resize": (400, 500, 600),
              "data_aug_scales2_crop": (384, 600)}
    sizes = {name: [max(1, round(size * factor)) for size in values] for name, values in scaled.items()}
    return sizes | {"data_aug_max_size": max(1, round(1333 * factor))}
