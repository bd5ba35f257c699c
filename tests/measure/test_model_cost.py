import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from measure.model_cost import FORMULAS, count_flops, count_parameters, count_part_parameters, mean_flops
from models import build_model
from util.config import load_config


@pytest.mark.parametrize("variant, total, encoder", [  # the paper's total; the published code's encoder
    ("r50_h3l1_2p1x3", 151, 56.1), ("swint_h2l2_2p1x3", 138, 33.9),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("r50_h3l1_6p1x1", 141, 46.2), ("r50_h2l2_2p1x3", 130, 33.9), ("swint_h3l1_2p1x3", 159, 56.1),
        ("swint_h3l1_6p1x1", 149, 46.2)))])
def test_gflops_of_the_paper(variant, total, encoder):
    model, _, _ = build_model(load_config(f"config/LiteDINO/{variant}.py", {"pretrained_backbone": False}))
    flops = count_flops(model, (800, 1066))
    assert flops["total"] == pytest.approx(total, rel=0.015)
    assert flops["encoder"] == pytest.approx(encoder, rel=0.05)
    assert sum(v for k, v in flops.items() if k != "total") == pytest.approx(flops["total"])
    assert flops["other"] == pytest.approx(0, abs=0.01)


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.rest = nn.Conv2d(5, 2, 1)

    def parts(self):
        return {"first": ["first"], "second": ["second"]}

    def forward(self, images):
        return self.rest(self.second(self.first(torch.stack(images))))


def test_parts_and_rest_are_counted_apart():
    flops = count_flops(TwoParts(), (10, 20))
    assert {k: round(v * 1e9) for k, v in flops.items()} == {
        "first": 200 * 12, "second": 200 * 20, "other": 200 * 10, "total": 200 * 42}


def test_parameters_of_parts():
    model = TwoParts()
    assert count_part_parameters(model) == {"first": 16, "second": 25, "other": 12}
    model.second.shared = model.first  # belongs to the last part that has it
    assert count_part_parameters(model) == {"first": 0, "second": 41, "other": 12}


def test_mean_over_image_sizes():
    flops = mean_flops(TwoParts(), [(10, 20), (10, 20), (10, 40)])
    assert flops["total"] * 1e9 == pytest.approx(42 * (200 + 200 + 400) / 3)


def test_grid_sample_counts_four_multiply_adds_a_value():
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        F.grid_sample(torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 7, 2), align_corners=False)
    assert counter.get_total_flops() / 2 == 4 * 2 * 3 * 6 * 7


def test_counting_leaves_the_model_as_it_is():
    model = TwoParts().train()
    count_flops(model, (4, 4))
    assert model.training and not model.first._forward_hooks and next(model.parameters()).device.type == "cpu"
    assert all(p.requires_grad for p in model.parameters())


def test_count_parameters():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert count_parameters(model) == (8, 6)
