"""What the gather form is for. That it computes what the others do is tested in test_functional.py."""
import pytest
import torch
from torch.export import Dim

from models.ops import implementation, key_aware_deform_attn, ms_deform_attn
from models.ops.gather import corners
from tests.models.ops.operands import Case, make_operands

CASE = Case(((5, 4), (3, 2)))


class Both(torch.nn.Module):
    def forward(self, finest, coarsest, query, locations, weights):
        """Maps [B, M, D, H, W]: their sizes are those of the graph."""
        value = torch.cat([x.flatten(3).permute(0, 3, 1, 2) for x in (finest, coarsest)], 1)
        shapes = [tuple(x.shape[-2:]) for x in (finest, coarsest)]
        return (key_aware_deform_attn(query, value, value, shapes, locations),
                ms_deform_attn(value, shapes, locations, weights))


def inputs(case):
    x = make_operands(case, torch.float32)
    maps = [part.permute(0, 2, 3, 1).unflatten(3, shape)
            for part, shape in zip(x["value"].split([h * w for h, w in case.shapes], 1), case.shapes)]
    return *maps, x["query"], x["locations"], x["weights"]


def test_its_graph_takes_maps_of_any_size_and_has_no_grid_sample():
    sides = {3: Dim.DYNAMIC, 4: Dim.DYNAMIC}
    with implementation("gather"):
        program = torch.export.export(Both(), inputs(CASE), dynamic_shapes=(sides, sides, None, None, None))
    assert not [node for node in program.graph.nodes if "grid" in str(node.target)]
    other = inputs(Case(((7, 3), (2, 6))))
    with implementation("torch"):
        wanted = Both()(*other)
    for found, expected in zip(program.module()(*other), wanted):
        torch.testing.assert_close(found, expected)


def test_corners_outside_the_map_have_no_weight_and_a_token_that_is_there():
    nan, inf = float("nan"), float("inf")
    locations = torch.tensor([[0.5, 0.5], [-0.2, 0.5], [0, 0], [1, 1], [nan, 0.5], [-inf, inf], [3e38, 0.5]])
    tokens, weights = corners([(2, 2)], locations[None, :, None, None, None])
    assert tokens.shape == weights.shape == (1, 7, 1, 1, 4)
    assert tokens.min() >= 0 and tokens.max() < 4
    assert weights[0, :, 0, 0].sum(-1).tolist() == pytest.approx([1, 0.1, 0.25, 0.25, 0, 0, 0])
    assert tokens[0, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_empty_maps_are_zero():
    empty = Case(((0, 3), (2, 0)))
    x = make_operands(empty, torch.float32)
    with implementation("gather"):
        assert not ms_deform_attn(x["value"], list(empty.shapes), x["locations"], x["weights"]).any()
