import math

import pytest
import torch

from models.ops import key_aware_deform_attn, ms_deform_attn

SHAPES = [(3, 4), (2, 2)]
BATCH, QUERIES, HEADS, DIM, POINTS = 2, 3, 2, 4, 2
TOKENS = sum(h * w for h, w in SHAPES)


def rand(*size, dtype=torch.float64, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_locations():
    """Between pixel centres, where bilinear sampling is smooth; some outside the map."""
    size = torch.tensor([(w, h) for h, w in SHAPES], dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(1)
    shape = BATCH, QUERIES, HEADS, len(SHAPES), POINTS, 2
    pixels = torch.randint(-2, 5, shape, generator=generator) + 0.2 + 0.6 * torch.rand(shape, generator=generator)
    return (pixels + 0.5) / size


def make_inputs():
    query = rand(BATCH, QUERIES, HEADS, DIM, seed=2)
    key, value = (rand(BATCH, TOKENS, HEADS, DIM, seed=seed) for seed in (3, 4))
    weights = rand(BATCH, QUERIES, HEADS, len(SHAPES), POINTS, seed=5)
    return query, key, value, weights


def key_aware(**changes):
    query, key, value, _ = make_inputs()
    inputs = {"query": query, "key": key, "value": value, "spatial_shapes": SHAPES,
              "sampling_locations": make_locations()} | changes
    return key_aware_deform_attn(**inputs)


def plain(**changes):
    *_, value, weights = make_inputs()
    inputs = {"value": value, "spatial_shapes": SHAPES, "sampling_locations": make_locations(),
              "attention_weights": weights} | changes
    return ms_deform_attn(**inputs)


COMMON_MISFITS = [
    {"value": rand(BATCH, TOKENS + 1, HEADS, DIM)}, {"value": rand(BATCH, TOKENS, HEADS * DIM)},
    {"spatial_shapes": SHAPES[:1]}, {"spatial_shapes": [(4, 4), (1, 1)]}, {"spatial_shapes": [(3, 4), (2, 1), (2, 1)]},
    {"sampling_locations": make_locations()[:1]}, {"sampling_locations": make_locations()[:, :, :1]},
    {"sampling_locations": make_locations()[:, :, :, :1]}, {"sampling_locations": make_locations().flatten(3, 4)},
    {"sampling_locations": make_locations()[..., :1]},
]


def describe(changes):
    return " ".join(f"{name} {tuple(x.shape) if isinstance(x, torch.Tensor) else x}" for name, x in changes.items())


@pytest.mark.parametrize("changes", [
    *COMMON_MISFITS, {"query": rand(BATCH, QUERIES + 1, HEADS, DIM)}, {"query": rand(BATCH, QUERIES, HEADS, DIM + 1)},
    {"query": rand(BATCH, QUERIES, HEADS * DIM)}, {"key": rand(BATCH, TOKENS, HEADS, DIM + 1)},
    {"key": rand(1, TOKENS, HEADS, DIM)},
], ids=describe)
def test_key_aware_shapes_that_do_not_fit(changes):
    with pytest.raises(ValueError, match="fit|must be"):
        key_aware(**changes)


@pytest.mark.parametrize("changes", [
    *COMMON_MISFITS, {"attention_weights": rand(BATCH, QUERIES, HEADS, len(SHAPES) * POINTS)},
    {"attention_weights": rand(BATCH, QUERIES, 1, len(SHAPES), POINTS)},
], ids=describe)
def test_plain_shapes_that_do_not_fit(changes):
    with pytest.raises(ValueError, match="fit|must be"):
        plain(**changes)


def test_output_shapes():
    assert key_aware().shape == plain().shape == (BATCH, QUERIES, HEADS * DIM)


def test_pixel_centres_are_sampled_exactly():
    """One level, one point, one channel: the token itself, whatever its weight in the softmax of one."""
    height, width = 3, 4
    value = torch.arange(12.0).view(1, 12, 1, 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    locations = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).view(1, 12, 1, 1, 1, 2)
    sampled = key_aware_deform_attn(torch.randn(1, 12, 1, 1), value, value, [(height, width)], locations)
    torch.testing.assert_close(sampled.flatten(), torch.arange(12.0))


def test_a_sample_outside_keeps_its_share_of_the_softmax():
    """Its key is 0, so its weight is exp(0) over the sum."""
    token, query = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.5])
    value = token.expand(1, 4, 1, 2)
    locations = torch.tensor([[0.5, 0.5], [3.0, 0.5]]).view(1, 1, 1, 1, 2, 2)
    out = key_aware_deform_attn(query.view(1, 1, 1, 2), value, value, [(2, 2)], locations)
    weight = math.exp(float(query @ token) / math.sqrt(2))
    torch.testing.assert_close(out.flatten(), weight / (weight + 1) * token)


def test_values_outside_are_zero():
    locations = torch.tensor([-0.5, 0.5]).view(1, 1, 1, 1, 1, 2)
    out = ms_deform_attn(torch.ones(1, 4, 1, 2), [(2, 2)], locations, torch.ones(1, 1, 1, 1, 1))
    assert torch.equal(out, torch.zeros(1, 1, 2))


def test_plain_weights_are_used_as_they_are():
    """They need not sum to one."""
    weights = make_inputs()[-1]
    torch.testing.assert_close(plain(attention_weights=3 * weights), 3 * plain())


def test_gradients_of_key_aware():
    query, key, value, _ = make_inputs()
    inputs = [x.requires_grad_() for x in (query, key, value, make_locations())]
    assert torch.autograd.gradcheck(
        lambda q, k, v, at: key_aware_deform_attn(q, k, v, SHAPES, at), inputs, eps=1e-6, atol=1e-5)


def test_gradients_where_key_is_value():
    query, key, *_ = make_inputs()
    inputs = [x.requires_grad_() for x in (query, key, make_locations())]
    assert torch.autograd.gradcheck(
        lambda q, k, at: key_aware_deform_attn(q, k, k, SHAPES, at), inputs, eps=1e-6, atol=1e-5)


def test_gradients_of_plain():
    *_, value, weights = make_inputs()
    inputs = [x.requires_grad_() for x in (value, make_locations(), weights)]
    assert torch.autograd.gradcheck(
        lambda v, at, w: ms_deform_attn(v, SHAPES, at, w), inputs, eps=1e-6, atol=1e-5)


def test_one_tensor_as_key_and_value_equals_two_equal_ones():
    _, shared, *_ = make_inputs()
    shared.requires_grad_()
    key, value = (shared.detach().clone().requires_grad_() for _ in range(2))
    once, twice = key_aware(key=shared, value=shared), key_aware(key=key, value=value)
    torch.testing.assert_close(once, twice)
    once.square().sum().backward()
    twice.square().sum().backward()
    torch.testing.assert_close(shared.grad, key.grad + value.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    """The result is the float32 one of the same rounded inputs, rounded once."""
    query, key, value, weights = (x.to(dtype) for x in make_inputs())
    at = make_locations().float()
    out = key_aware(query=query, key=key, value=value, sampling_locations=at)
    expected = key_aware(query=query.float(), key=key.float(), value=value.float(), sampling_locations=at)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    out = plain(value=value, attention_weights=weights, sampling_locations=at)
    expected = plain(value=value.float(), attention_weights=weights.float(), sampling_locations=at)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_reach_inside(dtype):
    query, key, value, weights = (x.to(dtype) for x in make_inputs())
    expected = key_aware(query=query, key=key, value=value), plain(value=value, attention_weights=weights)
    with torch.autocast("cpu", torch.bfloat16):
        out = key_aware(query=query, key=key, value=value), plain(value=value, attention_weights=weights)
    assert out[0].dtype == out[1].dtype == dtype
    assert torch.equal(out[0], expected[0]) and torch.equal(out[1], expected[1])


def test_large_logits_stay_finite():
    query, key, *_ = make_inputs()
    assert key_aware(query=1e4 * query, key=1e2 * key).isfinite().all()
