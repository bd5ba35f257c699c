"""All that a training does to its images, by its progress."""
from collections.abc import Callable

from torch import Tensor

from datasets.extra import Extra
from datasets.mixing import Mixing, Reader, Target
from datasets.phases import used_at
from datasets.transforms import train_transforms
from util.options import DataOptions


class Augmentation:
    """Makes training samples of the images of a data set, as the data_aug_ keys and aug_phases of a config say.

    Imports what data_aug_extra names, which is code: only for a training, and with its own config. fix_size: see
    train_transforms. Raises UserError if that cannot be used.
    """

    def __init__(self, options: DataOptions, fix_size: bool = False):
        self.options, self.fix_size = options, fix_size
        self.mixing = Mixing(options)
        self.extra = Extra(options.data_aug_extra) if options.data_aug_extra else None
        self.transforms: dict[frozenset[str], Callable] = {}  # by the names that are used

    def __call__(self, read: Reader, index: int, progress: float) -> tuple[Tensor, Target]:
        """A sample (datasets/transforms.py) of the image at `index`, and perhaps of others. progress: fraction of the
        training that lies before it."""
        used = used_at(progress, self.options.aug_phases)
        if used not in self.transforms:
            self.transforms[used] = train_transforms(self.options, self.fix_size, used, self.extra)
        return self.transforms[used](*self.mixing(read, index, used))
