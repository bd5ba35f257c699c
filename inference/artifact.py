"""What an exported file says of itself: the card of its detector, and how it is called."""
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets.transforms import ResizeShorter
from util.errors import UserError
from util.model_card import KEY as KEY  # of the JSON in a file's metadata
from util.model_card import ModelCard
from util.saved_state import is_number

VERSION = 1
DTYPES = ("float32", "float16", "bfloat16", "int8")
# Of the deformable attention, and how models.ops.implementation calls them.
SAMPLERS = {"gather": "gather", "grid_sample": "torch", "native": "native"}
LARGEST = 1 << 16  # px
INPUTS, OUTPUTS = ("images", "orig_target_sizes"), ("labels", "boxes", "scores")  # of the graph, see deploy.graph


@dataclass(frozen=True)
class Artifact:
    """size: (height, width) to which every image is resized, whatever its aspect ratio; None: any size, then the
    shorter side becomes `shorter_side`, or less where the longer one would exceed `longest_side`, px. batch: images of
    one call; None: any number. uint8: images are uint8 in [0, 255], else float32 in [0, 1]. dtype: that computes; an
    OpenVINO file of float16 only stores in it. sampler: the form of the deformable attention. nms_iou_threshold: of the
    class-wise NMS that the reader applies to the outputs, which have none; none where it is not above 0.

    Raises UserError for values that no reader would take.
    """

    card: ModelCard
    size: tuple[int, int] | None
    batch: int | None
    uint8: bool
    dtype: str
    sampler: str
    shorter_side: int
    longest_side: int
    nms_iou_threshold: float = -1

    def __post_init__(self) -> None:
        fault = _fault({**vars(self), "size": self.size and list(self.size)})
        if fault:
            raise UserError(f"a file that is exported so could not be read: {fault}")

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """The (height, width) to which an image of width x height px is resized."""
        if self.size is not None:
            return self.size
        return ResizeShorter([self.shorter_side], self.longest_side).result(width, height, self.shorter_side)

    def check_names(self, names: Iterable[str], source: str) -> None:
        """Raises UserError that names `source` if one of INPUTS and OUTPUTS is not among a graph's names."""
        missing = sorted({*INPUTS, *OUTPUTS} - set(names))
        if missing:
            raise UserError(f"{source} has no {', '.join(missing)}: it was not written by tools/export.py")

    def check_images(self, shape: Iterable[int | None], uint8: bool, source: str) -> None:
        """Raises UserError that names `source` if a graph's input `images`, of this shape (None: any number) and type,
        is another than this says: some runtimes would compute something in any case."""
        found, wanted = tuple(shape), (self.batch, 3, *(self.size or (None, None)))
        if found != wanted or uint8 != self.uint8:
            raise UserError(f"{source}: its metadata are damaged: they say that images are "
                            f"{_words(wanted, self.uint8)}, but its graph takes {_words(found, uint8)}")

    def to_json(self) -> str:
        how = {name: value for name, value in vars(self).items() if name != "card"}
        return json.dumps({**self.card.to_dict(), "artifact": {"version": VERSION, **how}})

    @classmethod
    def from_json(cls, text: str | None, source: str) -> "Artifact":
        """Raises UserError that names `source` for what is no artifact of this version, or contradicts itself."""
        if text is None:
            raise UserError(f"{source} carries no metadata under {KEY!r}: it was not written by tools/export.py")
        card = ModelCard.from_json(text, source)
        how = json.loads(text).get("artifact")
        if not isinstance(how, dict) or how.get("version") != VERSION:
            found = how.get("version") if isinstance(how, dict) else None
            raise UserError(f"{source} is an exported file of version {found!r}, this program reads {VERSION}: export "
                            "it again with this version")
        fault = _fault(how)
        if fault:
            raise UserError(f"{source}: its metadata are damaged: {fault}")
        values = {name: how[name] for name in _FIELDS}
        return cls(card, **values | {"size": values["size"] and tuple(values["size"])})


def _fault(how: Mapping[str, Any]) -> str:
    """The first of _FIELDS that is missing or does not fit, in words; empty if there is none."""
    return next((f"{name} must be {wanted}, not {how.get(name)!r}" for name, (fits, wanted) in _FIELDS.items()
                 if name not in how or not fits(how[name])), "")


def _words(shape: Iterable[int | None], uint8: bool) -> str:
    return f"{'uint8' if uint8 else 'float32'} [{', '.join('any' if n is None else str(n) for n in shape)}]"


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_side, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "size": (lambda x: x is None or _is_size(x), "null or [height, width] in px"),
    "batch": (lambda x: x is None or _is_side(x), f"null or a number of images up to {LARGEST}"),
    "uint8": (lambda x: isinstance(x, bool), "true or false"),
    "dtype": (lambda x: isinstance(x, str) and x in DTYPES, f"one of {', '.join(DTYPES)}"),
    "sampler": (lambda x: isinstance(x, str) and x in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
    "shorter_side": (_is_side, f"a number of px up to {LARGEST}"),
    "longest_side": (_is_side, f"a number of px up to {LARGEST}"),
    "nms_iou_threshold": (lambda x: is_number(x, -1, 1), "a number from -1 to 1"),
}
