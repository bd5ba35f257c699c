"""What a detector found in one image."""
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from datasets.images import read_image
from reports.drawing import draw_detections, truth_tensors
from util.class_names import ClassNames
from util.errors import UserError


class Detection(NamedTuple):
    """box: xyxy in pixels of the image."""

    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detections:
    """boxes [n, 4] xyxy in pixels of the image, scores [n] in [0, 1], descending, labels [n] category ids; on the CPU.

    size: (width, height) of the image. path: of the file it is from, "" for one in memory. frame: its number in a
    video or camera, from 0, and time: seconds since the start; None for images. image: RGB, where it was kept.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: ClassNames = field(repr=False)
    size: tuple[int, int]
    path: str = ""
    frame: int | None = None
    time: float | None = None
    image: Image.Image | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str]:
        """The class name of each detection; "class 3" where the id 3 has none."""
        return [self.class_names.get(label, f"class {label}") for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist())
        return (Detection(name, label, score, (box[0], box[1], box[2], box[3])) for name, label, score, box in rows)

    def __getitem__(self, index: Any) -> "Detections":
        """Those of a slice, of a list of places or of a mask; of a single place, a Detections of length 1."""
        if isinstance(index, int) or getattr(index, "ndim", None) == 0:  # such as scores.argmax()
            index = int(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"no detection {index} of {len(self)}")
            index = [index]
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index])

    def draw(self, image: Image.Image | None = None) -> Image.Image:
        """The boxes on a copy of the image: of the given one, of the one that was kept, or of the file."""
        if image is None:
            image = self.image
        if image is None and (not self.path or self.frame is not None):
            raise UserError("the image was not kept: pass it, or take the results from a stream (stream=True)")
        return draw_detections(read_image(self.path) if image is None else image, truth_tensors([]),
                               {"scores": self.scores, "labels": self.labels, "boxes": self.boxes}, self.class_names, 0)

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """COCO's result format: image_id (where given), category_id, bbox [x, y, width, height] in px, score."""
        boxes = box_convert(self.boxes, "xyxy", "xywh").tolist()
        head = {} if image_id is None else {"image_id": image_id}
        return [{**head, "category_id": label, "bbox": box, "score": score}
                for label, box, score in zip(self.labels.tolist(), boxes, self.scores.tolist())]

    def to_supervision(self) -> Any:
        """A supervision.Detections; its data have "class_name". Raises UserError without that package."""
        try:
            import supervision
        except ImportError as error:
            raise UserError("to_supervision needs the package supervision: pip install supervision") from error
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes.numpy().astype(np.float32), confidence=self.scores.numpy().astype(np.float32),
            class_id=self.labels.numpy().astype(int), data={"class_name": np.array(self.names, dtype=str)})

