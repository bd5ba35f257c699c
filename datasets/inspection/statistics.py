"""Numbers that describe a data set before a training, as plain values for a json file."""
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from datasets.annotations import has_size
from datasets.coco_eval import limit_note
from datasets.inspection.split import SplitInspection
from datasets.transforms import ResizeShorter, eval_limits, train_limits
from util.options import DataOptions

SMALL, MEDIUM = 32**2, 96**2  # COCO's limits of the area, px²
FEW = 10  # boxes: a class with fewer is hardly learned


def split_statistics(split: SplitInspection, data: DataOptions, finest_stride: int) -> dict:
    """Images, boxes by class and size, and the sides of boxes as the model sees them, of one split.

    finest_stride: of the finest feature map, in px of the image.
    """
    sizes = [(i["width"], i["height"]) for i in split.images.values() if has_size(i)]
    per_image = Counter(split.box_image)
    counts = [per_image[image_id] for image_id in split.images]
    fullest = max(per_image, key=lambda image_id: per_image[image_id], default=None)
    return {
        "images": len(split.images), "images_without_boxes": sum(count == 0 for count in counts),
        "boxes": len(split.box_image), "crowds": split.crowds, "classes": _by_class(split),
        "boxes_an_image": spread(counts), "fullest_image": fullest and split.images[fullest]["file_name"],
        "width": spread([width for width, _ in sizes]), "height": spread([height for _, height in sizes]),
        "aspect_ratio": spread([width / height for width, height in sizes]),
        "sizes": [[*size, count] for size, count in Counter(sizes).most_common(5)],
        "seen": _seen(split, data, finest_stride / 2),
    }


def spread(values: Sequence[float]) -> list[float]:
    """[smallest, median, largest]; zeros where there are none."""
    return [round(float(x), 3) for x in np.percentile(values, (0, 50, 100))] if len(values) else [0.0, 0.0, 0.0]


def seen_sides(split: SplitInspection, size: int, max_size: int) -> np.ndarray:
    """[n, 2] width and height of the boxes, px, with images resized to `size` and at most `max_size`."""
    if not split.box_image:
        return np.zeros((0, 2))
    resize = ResizeShorter([size], max_size)
    images = split.images
    factors = {i: resize.result(images[i]["width"], images[i]["height"], size)[1] / images[i]["width"]
               for i in set(split.box_image) if has_size(images[i])}
    return split.box_sides * np.array([factors.get(i, 1.0) for i in split.box_image])[:, None]


def _seen(split: SplitInspection, data: DataOptions, least: float) -> dict:
    """Length of the boxes (the root of their area) at the evaluation's size, and how many have a side below `least` px
    there and at the smallest size of the training."""
    smallest, _, max_size = train_limits(data)
    evaluated, shrunk = seen_sides(split, *eval_limits(data)), seen_sides(split, smallest, max_size)
    return {"eval_size": list(eval_limits(data)), "length": spread(np.sqrt(evaluated.prod(1))),
            "shorter_side": spread(evaluated.min(1)), "least": least, "smallest_train_size": smallest,
            "below_least": int((evaluated.min(1) < least).sum()),
            "below_least_at_smallest": int((shrunk.min(1) < least).sum())}


def _by_class(split: SplitInspection) -> dict[str, dict[str, int]]:
    """Boxes, images with boxes, and boxes by COCO size, by "id name"; classes without boxes too."""
    images = defaultdict(set)
    for image_id, label in zip(split.box_image, split.box_label.tolist()):
        images[label].add(image_id)
    result = {}
    for label, name in split.class_names.items():
        area = split.box_area[split.box_label == label]
        result[f"{label} {name}"] = {
            "boxes": len(area), "images": len(images[label]), "small": int((area < SMALL).sum()),
            "medium": int(((area >= SMALL) & (area < MEDIUM)).sum()), "large": int((area >= MEDIUM).sum())}
    return result


def data_warnings(train: SplitInspection, val: SplitInspection, described: dict[str, dict],
             num_queries: int | None) -> list[str]:
    """What does not stop a training and may spoil it. described: `split_statistics` of "train" and "val"."""
    found = []
    if train.class_names != val.class_names:
        found.append(f"train and val list different categories: {_differences(train.class_names, val.class_names)}")
    counts = {split: {name: row["boxes"] for name, row in described[split]["classes"].items()}
              for split in ("train", "val")}
    for one, other in (("train", "val"), ("val", "train")):
        lacking = [name for name, count in counts[one].items() if count and not counts[other].get(name)]
        if lacking:
            found.append(f"{shortened_list(lacking)}: boxes in {one} but none in {other}")
    few = [f"{name} ({count})" for name, count in sorted(counts["train"].items(), key=lambda item: item[1])
           if 0 < count < FEW]
    if few:
        found.append(f"classes with fewer than {FEW} boxes in train: {shortened_list(few)}")
    found += [f"{split.split}: {split.doubt}" for split in (train, val) if split.doubt]
    if not described["train"]["boxes"]:
        crowds = described["train"]["crowds"]
        found.append("train: no usable box, so that there is nothing to learn"
                     + (f": {crowds} annotations are crowd regions (iscrowd=1)" if crowds else ""))
    if not described["val"]["boxes"]:
        found.append("val: no usable box, so that AP cannot be measured, nor the best checkpoint be found")
    for split in ("train", "val"):
        row, most = described[split], described[split]["boxes_an_image"][2]
        if num_queries is not None and most > num_queries:
            found.append(f"{split}: {row['fullest_image']} has {most:.0f} boxes and the model only {num_queries} "
                         "queries: raise num_queries")
        seen = row["seen"]
        count, when = ((seen["below_least_at_smallest"], f"smallest training size {seen['smallest_train_size']}")
                       if split == "train" else (seen["below_least"], f"evaluation's size {seen['eval_size'][0]}"))
        if count:
            found.append(f"{split}: {count} of {row['boxes']} boxes have a side below {seen['least']:g} px (half the "
                         f"finest stride) at the {when} and are hard to find: larger images help (image_size, or "
                         "data_aug_scales)")
    if note := limit_note(zip(val.box_image, val.box_label.tolist())):
        found.append(f"val: {note}")
    found += _shared_images(train, val)
    return found


def _shared_images(train: SplitInspection, val: SplitInspection) -> list[str]:
    """The same bytes in both splits make the AP too good; the same name may be a coincidence."""
    digests = {file.digest: train.images[i]["file_name"] for i, file in train.files.items() if file and file.digest}
    val_digests = {i: file.digest for i, file in val.files.items() if file}
    same = [f"{val.images[i]['file_name']} is {digests[digest]}" for i, digest in val_digests.items()
            if digest in digests]
    found = []
    if same:
        found.append(f"{len(same)} val images are train images too, so that AP will be too good: "
                     f"{shortened_list(same)}")
    in_train = {image["file_name"] for image in train.images.values()}
    named = [image["file_name"] for i, image in val.images.items() if image["file_name"] in in_train
             and val_digests.get(i) not in digests]
    if named:
        found.append(f"{len(named)} val images have the name of a train image with other content: "
                     f"{shortened_list(named)}")
    return found


def _differences(train: dict[int, str], val: dict[int, str]) -> str:
    return shortened_list([f"{i} is {train.get(i, 'not listed')} and {val.get(i, 'not listed')}"
                 for i in sorted(train.keys() | val.keys()) if train.get(i) != val.get(i)])


def shortened_list(texts: list[str], most: int = 5) -> str:
    """The first `most` texts, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
