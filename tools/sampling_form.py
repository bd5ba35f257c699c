"""How many heads and points a deformable attention has, from its tensors."""
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.layers.deform_attn import initial_offsets

USUAL_HEADS = 8
LEAST_SIMILARITY = 0.85  # cosine of a trained bias and where it started: 0.997 in weights/bccd_lite_dino.safetensors


@dataclass(frozen=True)
class SamplingForm:
    """`same_loc`: the levels share a head's offsets. `sure`: not only the shapes tell it."""

    heads: int
    points: int
    same_loc: bool
    sure: bool = False

    def offset_levels(self, levels: int) -> int:
        """How many levels have offsets of their own."""
        return 1 if self.same_loc else levels


def sampling_form(state: dict[str, Tensor], prefix: str, levels: int, points: int | None = None) -> SamplingForm:
    """The form of the attention whose tensors begin with `prefix`.

    Shapes alone leave several. Training hardly moves the biases of the offsets, and each form starts them from another
    pattern; where they tell nothing, eight heads are assumed, and `points` where that is possible.
    """
    bias = state[f"{prefix}sampling_offsets.bias"]
    weights = state.get(f"{prefix}attention_weights.weight")
    forms = list(_possible(bias.numel() // 2, levels, None if weights is None else len(weights)))
    if not bias.is_meta and bias.any():
        likeness = [torch.cosine_similarity(bias.float(), initial_offsets(form.heads, form.offset_levels(levels),
                                                                          form.points), dim=0) for form in forms]
        best = max(range(len(forms)), key=likeness.__getitem__)
        if likeness[best] > LEAST_SIMILARITY:
            return replace(forms[best], sure=True)
    return min(forms, key=lambda form: (form.heads != USUAL_HEADS, form.points != (points or form.points),
                                        form.same_loc))


def _possible(pairs: int, levels: int, weights: int | None) -> Iterator[SamplingForm]:
    """All forms with this number of offsets, and of attention weights where there are such."""
    for same_loc in (False, True):
        sets, rest = divmod(pairs, 1 if same_loc else levels)  # heads times points
        if rest or weights not in (None, sets * levels):
            continue
        yield from (SamplingForm(heads, sets // heads, same_loc) for heads in range(1, sets + 1) if sets % heads == 0)
