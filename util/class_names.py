"""What category ids mean: names by id, and whether two sources agree on them."""
import unicodedata

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

ClassNames = dict[int, str]
COCO_CLASSES: ClassNames = dict(enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]))  # ids 0..90
COCO_IDS = [i for i, name in COCO_CLASSES.items() if name not in ("__background__", "N/A")]  # those in use


def comparable(name: str) -> str:
    """Equal for names that differ in case, spaces, hyphens, underscores or in how an accent is encoded only."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())


def shared_ids(new: ClassNames, old: ClassNames) -> dict[int, int]:
    """New id to old id, of the names that both have."""
    ids = {comparable(name): i for i, name in old.items()}
    return {i: ids[comparable(name)] for i, name in new.items() if comparable(name) in ids}


def disagreement(names: ClassNames, source: str, others: ClassNames, other_source: str) -> str:
    """In words, which ids that both sources have stand for another class in each; empty if none does. The sources are
    described as in "the val set of DIR"."""
    wrong = [i for i in names if i in others and comparable(names[i]) != comparable(others[i])]
    if not wrong:
        return ""
    listed = "; ".join(f"id {i} is {names[i]!r} and {others[i]!r}" for i in wrong[:5])
    more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return f"{source} and {other_source} give category ids other class names: {listed}{more}"
