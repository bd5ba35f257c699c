from typing import get_args

import pytest

from datasets.phases import DEFAULTS, used_at
from util.options import Augmented

ALWAYS = {"scale_jitter", "extra", "color", "crop"}


def test_all_that_a_config_can_name_has_a_phase():
    assert tuple(DEFAULTS) == get_args(Augmented)


@pytest.mark.parametrize("progress, wanted", [
    (0, ALWAYS), (0.0399, ALWAYS), (0.04, set(DEFAULTS)), (0.4999, set(DEFAULTS)), (0.5, ALWAYS), (0.999, ALWAYS)])
def test_mixed_images_start_after_the_first_steps_and_end_half_way(progress, wanted):
    assert used_at(progress, {}) == wanted


def test_a_phase_has_its_start_but_not_its_end():
    phases = {"mosaic": (0.25, 0.75), "crop": (0.5, 1.0), "mixup": (0.0, 1.0)}
    assert [sorted(used_at(p, phases) & {"mosaic", "crop", "mixup"}) for p in (0, 0.25, 0.5, 0.75, 0.999, 1)] == [
        ["mixup"], ["mixup", "mosaic"], ["crop", "mixup", "mosaic"], ["crop", "mixup"], ["crop", "mixup"],
        ["crop", "mixup"]]
