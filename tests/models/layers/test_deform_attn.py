import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from models.layers.deform_attn import KeyAwareDeformAttn, MSDeformAttn
from models.ops import ms_deform_attn
from util.errors import UserError

SHAPES = [(4, 5), (2, 3)]
DIM, LEVELS, HEADS, POINTS = 8, 2, 2, 3
TOKENS = sum(h * w for h, w in SHAPES)


def make_module(kind, **options):
    """A module with random weights, whose offsets reach outside the maps."""
    torch.manual_seed(0)
    module = kind(DIM, LEVELS, HEADS, POINTS, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


def make_inputs(reference_dim, batch=2, queries=4):
    generator = torch.Generator().manual_seed(1)
    query, memory = (torch.randn(batch, n, DIM, generator=generator, dtype=torch.float64) for n in (queries, TOKENS))
    reference = torch.rand(batch, queries, LEVELS, reference_dim, generator=generator, dtype=torch.float64)
    padding = torch.rand(batch, TOKENS, generator=generator) < 0.2
    return query, reference, memory, padding


def bilinear(grid, x, y):
    """Value of grid [H, W, D] at (x, y), where pixel (i, j) has its centre at (j + 0.5, i + 0.5); zero outside."""
    height, width, _ = grid.shape
    total = torch.zeros(grid.shape[2], dtype=grid.dtype)
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            total += (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row)) * grid[row, column]
    return total


def slow_attention(module, query, reference, memory, padding):
    """The definition, one query and head at a time. Also returns how many samples lie outside their map."""
    size, outside = DIM // HEADS, 0
    value = F.linear(memory, module.value_proj.weight, module.value_proj.bias)
    key = value
    if getattr(module, "key_proj", None) is not None:
        key = F.linear(memory, module.key_proj.weight, module.key_proj.bias)
    value, key = (x * ~padding[..., None] for x in (value, key))
    offsets = F.linear(query, module.sampling_offsets.weight, module.sampling_offsets.bias)
    result = torch.zeros_like(query)
    for b, q, m in itertools.product(range(query.shape[0]), range(query.shape[1]), range(HEADS)):
        channels = slice(m * size, (m + 1) * size)
        keys, values = [], []
        for level, (height, width) in enumerate(SHAPES):
            start = 0 if level == 0 else SHAPES[0][0] * SHAPES[0][1]
            grids = [x[b, start:start + height * width, channels].view(height, width, size) for x in (key, value)]
            for p in range(POINTS):
                place = reference[b, q, level].tolist()
                row = m if module.offset_levels == 1 else m * LEVELS + level
                at = (row * POINTS + p) * 2
                dx, dy = offsets[b, q, at:at + 2].tolist()
                if len(place) == 2:
                    x, y = place[0] * width + dx, place[1] * height + dy
                else:
                    x = (place[0] + dx / POINTS * place[2] / 2) * width
                    y = (place[1] + dy / POINTS * place[3] / 2) * height
                outside += not (0 <= x <= width and 0 <= y <= height)
                keys.append(bilinear(grids[0], x, y))
                values.append(bilinear(grids[1], x, y))
        if isinstance(module, KeyAwareDeformAttn):
            projected = F.linear(query[b, q], module.query_proj.weight, module.query_proj.bias)[channels]
            logits = torch.stack([projected @ k / math.sqrt(size) for k in keys])
        else:
            logits = F.linear(query[b, q], module.attention_weights.weight, module.attention_weights.bias)
            logits = logits[m * LEVELS * POINTS:(m + 1) * LEVELS * POINTS]
        weights = logits.exp() / logits.exp().sum()
        result[b, q, channels] = sum(w * v for w, v in zip(weights, values, strict=True))
    return F.linear(result, module.output_proj.weight, module.output_proj.bias), outside


@pytest.mark.parametrize("reference_dim", [2, 4])
@pytest.mark.parametrize("same_loc", [False, True])
@pytest.mark.parametrize("kind, options", [(MSDeformAttn, {}), (KeyAwareDeformAttn, {}),
                                           (KeyAwareDeformAttn, {"proj_key": True})],
                         ids=["plain", "key-aware", "key-aware with proj_key"])
def test_equals_the_definition(kind, options, same_loc, reference_dim):
    module = make_module(kind, same_loc=same_loc, **options)
    query, reference, memory, padding = make_inputs(reference_dim)
    with torch.no_grad():
        expected, outside = slow_attention(module, query, reference, memory, padding)
        torch.testing.assert_close(module(query, reference, memory, SHAPES, padding), expected)
        unpadded = slow_attention(module, query, reference, memory, torch.zeros_like(padding))[0]
        torch.testing.assert_close(module(query, reference, memory, SHAPES), unpadded)
    assert outside > 0 and not torch.allclose(expected, unpadded)


@pytest.mark.parametrize("options", [{}, {"proj_key": True}], ids=str)
def test_padding_counts_as_outside_the_map(options):
    """Padding has key and value 0, so that it keeps its part of the softmax but adds nothing."""
    module = make_module(KeyAwareDeformAttn, **options)
    query, reference, memory, _ = make_inputs(2)
    everything = torch.ones(2, TOKENS, dtype=torch.bool)
    expected = module.output_proj.bias.expand_as(query)
    torch.testing.assert_close(module(query, reference, memory, SHAPES, everything), expected)


@pytest.mark.parametrize("same_loc", [False, True])
@pytest.mark.parametrize("kind", [MSDeformAttn, KeyAwareDeformAttn])
def test_initial_locations(kind, same_loc):
    """Head m looks in direction m / M of a turn, point p at p + 1 pixels along the farther axis, whatever the query."""
    module = kind(16, LEVELS, num_heads=8, num_points=4, same_loc=same_loc)
    reference = torch.full((1, 2, LEVELS, 2), 0.5)
    locations = module.sampling_locations(torch.randn(1, 2, 16), reference, SHAPES)
    assert locations.shape == (1, 2, 8, LEVELS, 4, 2)
    directions = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1.0]])
    distance = torch.arange(1, 5)[:, None]
    for level, (height, width) in enumerate(SHAPES):
        pixels = (locations[:, :, :, level] - 0.5) * torch.tensor([width, height])
        expected = (directions[:, None] * distance).expand(1, 2, -1, -1, -1)
        torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [MSDeformAttn, KeyAwareDeformAttn])
def test_levels_share_the_offsets_of_a_head(kind):
    """As published: "same_loc" is the same location of each scale, in pixels of each around points, and in parts of the
    box around boxes."""
    module = make_module(kind, same_loc=True)
    assert module.sampling_offsets.out_features == HEADS * POINTS * 2
    query = make_inputs(2)[0]
    offsets = module.sampling_offsets(query).view(2, 4, HEADS, POINTS, 2)
    assert not torch.allclose(offsets[:, :, 0], offsets[:, :, 1])  # heads do not share them
    around_points = module.sampling_locations(query, torch.full((2, 4, LEVELS, 2), 0.5).double(), SHAPES) - 0.5
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4], dtype=torch.float64).expand(2, 4, LEVELS, 4)
    in_boxes = module.sampling_locations(query, boxes, SHAPES) - 0.5
    for level, (height, width) in enumerate(SHAPES):
        torch.testing.assert_close(around_points[:, :, :, level] * torch.tensor([width, height]), offsets)
        torch.testing.assert_close(in_boxes[:, :, :, level] * torch.tensor([10, 5]) * POINTS, offsets)


def test_boxes_scale_the_offsets():
    """Offsets count in half sizes of the box, divided by the number of points; its centre moves along."""
    module = make_module(MSDeformAttn)
    query = make_inputs(4)[0]
    box = torch.tensor([0.3, 0.6, 0.2, 0.4], dtype=torch.float64)
    boxes = torch.stack([box, box * torch.tensor([1, 1, 2, 3])]).expand(2, 4, -1, -1)  # one of each level
    locations = module.sampling_locations(query, boxes, SHAPES)
    offsets = module.sampling_offsets(query).view(2, 4, HEADS, LEVELS, POINTS, 2)
    scale = torch.tensor([[0.1, 0.2], [0.2, 0.6]], dtype=torch.float64)[:, None] / POINTS
    torch.testing.assert_close(locations, box[:2] + offsets * scale)


def test_plain_attention_starts_with_equal_weights():
    module = MSDeformAttn(DIM, LEVELS, HEADS, POINTS)
    assert not module.attention_weights.weight.any() and not module.attention_weights.bias.any()


def test_keys_are_the_values_unless_projected():
    names = {name for name, _ in KeyAwareDeformAttn(DIM, LEVELS, HEADS, POINTS).named_children()}
    assert names == {"sampling_offsets", "value_proj", "output_proj", "query_proj"}
    names = {name for name, _ in KeyAwareDeformAttn(DIM, LEVELS, HEADS, POINTS, proj_key=True).named_children()}
    assert names == {"sampling_offsets", "value_proj", "output_proj", "query_proj", "key_proj"}


@pytest.mark.parametrize("kind", [MSDeformAttn, KeyAwareDeformAttn])
def test_dim_must_be_a_multiple_of_the_heads(kind):
    with pytest.raises(UserError, match="hidden_dim 10 is not a multiple of nheads 3"):
        kind(10, LEVELS, 3, POINTS)


@pytest.mark.parametrize("kind, options", [(MSDeformAttn, {}), (KeyAwareDeformAttn, {}),
                                           (KeyAwareDeformAttn, {"proj_key": True})], ids=str)
@pytest.mark.parametrize("reference_dim", [2, 4])
def test_samples_are_what_the_module_adds_up(kind, options, reference_dim):
    module = make_module(kind, **options)
    query, reference, memory, padding = make_inputs(reference_dim)
    locations, weights = module.samples(query, reference, memory, SHAPES, padding)
    assert locations.shape == (*weights.shape, 2) == (2, 4, HEADS, LEVELS, POINTS, 2)
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(2, 4, HEADS, dtype=torch.float64))
    value = module.value_proj(memory).masked_fill(padding[..., None], 0).unflatten(-1, (HEADS, -1))
    expected = module.output_proj(ms_deform_attn(value, SHAPES, locations, weights))
    torch.testing.assert_close(module(query, reference, memory, SHAPES, padding), expected)
