"""COCO's precision and recall, and the numbers and the table that follow from them."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CLASS_STATS = STATS[:6]
IOUS = tuple(round(float(iou), 2) for iou in np.linspace(0.5, 0.95, 10))
SIZES = ("all", "small", "medium", "large")
LINE = " {:<18} {} @[ IoU={:<9} | area={:>6s} | maxDets={:>3d} ] = {:0.3f}\n"  # as pycocotools prints them


@dataclass(frozen=True)
class Curves:
    """What an evaluator measures of K classes; -1 where there is nothing to be found."""

    precision: np.ndarray  # [IOUS, recalls 0, 0.01 .. 1, K, SIZES], with the most detections per image and class
    recall: np.ndarray  # [IOUS, K, SIZES, limits of detections per image and class, rising]

    def stats(self) -> tuple[float, ...]:
        """COCO's twelve numbers (STATS, with the most detections in place of 100); -1 where nothing can be measured."""
        half, three_quarters = IOUS.index(0.5), IOUS.index(0.75)
        precisions = [self.precision[..., :1], self.precision[half, ..., :1], self.precision[three_quarters, ..., :1],
                      *(self.precision[..., size] for size in (1, 2, 3))]
        recalls = [*(self.recall[..., 0, limit] for limit in range(3)),
                   *(self.recall[..., size, -1] for size in (1, 2, 3))]
        return tuple(-1.0 if (value := mean_measured(values)) is None else value for values in precisions + recalls)

    def class_stats(self, label: int) -> dict[str, float | None]:
        """CLASS_STATS of a class, None where nothing can be measured."""
        whole, *sizes = np.moveaxis(self.precision[:, :, label], -1, 0)
        values = (whole, whole[IOUS.index(0.5)], whole[IOUS.index(0.75)], *sizes)
        return dict(zip(CLASS_STATS, map(mean_measured, values)))


def mean_measured(values: np.ndarray) -> float | None:
    """The mean without the -1s; None if there is nothing else."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def stats_table(stats: Sequence[float], limits: Sequence[int]) -> str:
    """The twelve numbers as pycocotools prints them. limits: of detections per image and class, rising."""
    most, whole = limits[-1], f"{IOUS[0]:0.2f}:{IOUS[-1]:0.2f}"
    precisions = [(whole, "all", most), ("0.50", "all", most), ("0.75", "all", most),
                  *((whole, size, most) for size in SIZES[1:])]
    recalls = [*((whole, "all", limit) for limit in limits), *((whole, size, most) for size in SIZES[1:])]
    titles = [("Average Precision", "(AP)", row) for row in precisions] + [("Average Recall", "(AR)", row)
                                                                            for row in recalls]
    return "".join(LINE.format(title, short, *row, value) for (title, short, row), value in zip(titles, stats))
