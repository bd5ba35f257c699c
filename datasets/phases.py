"""When each augmentation of a training is used: config key aug_phases."""
from collections.abc import Mapping
from typing import NamedTuple

from util.options import Augmented

DENSE, WHOLE = (0.04, 0.5), (0.0, 1.0)
# Without an entry in aug_phases. What changes images most starts after the first steps and ends half way through, so
# that the detector then learns from images as it will see them: about the policy of DEIM (Huang et al. 2024).
DEFAULTS: dict[Augmented, tuple[float, float]] = {
    "mosaic": DENSE, "mixup": DENSE, "copy_paste": DENSE, "scale_jitter": WHOLE,
    "extra": WHOLE, "color": WHOLE, "crop": WHOLE}


class Sample(NamedTuple):
    """What a training sample follows from, together with the seed."""

    image: int  # index in the data set
    repetition: int = 0  # how often the training has passed over the images before
    progress: float = 0.0  # fraction of the whole training that lies before it, in [0, 1)


def used_at(progress: float, phases: Mapping[Augmented, tuple[float, float]]) -> frozenset[str]:
    """The names of DEFAULTS whose phase, from its start up to but not at its end, has the progress. A phase to 1 ends
    with the training."""
    return frozenset(name for name, (start, end) in (DEFAULTS | dict(phases)).items()
                     if start <= progress and (progress < end or end == 1))
