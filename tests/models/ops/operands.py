"""Operands of the deformable-attention operators, and what the operators make of them."""
import itertools
import math
from dataclasses import dataclass

import torch

from models.ops import implementation, key_aware_deform_attn, ms_deform_attn

# The three forms and what each differentiates: KDA with the values as keys, KDA with keys of its own, MSDA.
FORMS = {"kda": ("query", "value", "locations"), "kda_keys": ("query", "key", "value", "locations"),
         "msda": ("value", "locations", "weights")}


@dataclass(frozen=True)
class Case:
    """The sizes of one call."""
    shapes: tuple[tuple[int, int], ...] = ((3, 4), (2, 2))
    queries: int = 3
    channels: int = 4
    heads: int = 2
    points: int = 2
    batch: int = 2

    @property
    def tokens(self):
        return sum(h * w for h, w in self.shapes)


def make_operands(case, dtype=torch.float64, device="cpu"):
    """Random ones. Locations lie between pixel centres, where bilinear sampling is smooth; some outside the map."""
    generator = torch.Generator().manual_seed(0)

    def rand(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    points = case.batch, case.queries, case.heads, len(case.shapes), case.points
    size = torch.tensor([(max(w, 1), max(h, 1)) for h, w in case.shapes], dtype=torch.float64)[:, None]
    pixels = (torch.rand(*points, 2, generator=generator, dtype=torch.float64) * (size + 2)).floor() - 1
    pixels += 0.6 + 0.8 * torch.rand(*points, 2, generator=generator, dtype=torch.float64)
    operands = {"query": rand(case.batch, case.queries, case.heads, case.channels),
                "key": rand(case.batch, case.tokens, case.heads, case.channels),
                "value": rand(case.batch, case.tokens, case.heads, case.channels),
                "locations": pixels / size, "weights": rand(*points)}
    sums = torch.promote_types(dtype, torch.float32)
    return {name: x.to(device, sums if name in ("locations", "weights") else dtype) for name, x in operands.items()}


def run(form, x, shapes):
    """One form of the operators on the operands x."""
    shapes = list(shapes)
    if form == "msda":
        return ms_deform_attn(x["value"], shapes, x["locations"], x["weights"])
    key = x["value"] if form == "kda" else x["key"]
    return key_aware_deform_attn(x["query"], key, x["value"], shapes, x["locations"])


def differentiate(form, x, shapes, wanted=None, function=run):
    """The output, and the gradients of a random function of it with respect to `wanted`, by default to all."""
    wanted = FORMS[form] if wanted is None else wanted
    x = {name: tensor.detach().clone().requires_grad_(name in wanted) for name, tensor in x.items()}
    output = function(form, x, shapes)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(output, [x[name] for name in wanted], gradient.to(output))
    return {"output": output.detach()} | dict(zip(wanted, gradients))


def in_float64(form, x, shapes):
    """What `differentiate` should say, by the plain operators on the CPU in float64."""
    with implementation("torch"):
        return differentiate(form, {name: tensor.cpu().double() for name, tensor in x.items()}, shapes)


def assert_near(actual, expected, tolerance):
    """Each tensor, relative to its largest number; gradients that cancel out are 0 but for rounding."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert actual[name].shape == wanted.shape
        error = (actual[name].cpu().double() - wanted).abs().max() / wanted.abs().max().clamp(min=0.1)
        assert error < tolerance, f"{name}: {error:.1e}"


def by_definition(form, x, shapes):
    """The output in float64, one image and head at a time: every token counts by its nearness to a sample."""
    x = {name: tensor.detach().double() for name, tensor in x.items()}
    batch, queries, heads = x["locations"].shape[:3]
    channels = x["value"].shape[3]
    output = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    for b, m in itertools.product(range(batch), range(heads)):
        start, keys, values = 0, [], []
        for level, (height, width) in enumerate(shapes):
            tokens = slice(start, start + height * width)
            start += height * width
            for samples, name in ((keys, "value" if form == "kda" else "key"), (values, "value")):
                grid = x[name][b, tokens, m].reshape(height, width, channels)
                samples.append(bilinear(grid, x["locations"][b, :, m, level]))
        keys, values = torch.cat(keys, 1), torch.cat(values, 1)  # [queries, samples, channels]
        weights = x["weights"][b, :, m].flatten(1)
        if form != "msda":
            weights = ((keys * x["query"][b, :, m, None]).sum(2) / math.sqrt(channels)).softmax(1)
        output[b, :, m] = (weights[..., None] * values).sum(1)
    return output.flatten(2)


def bilinear(grid, places):
    """Values [..., D] of grid [H, W, D] at places [..., 2], (x, y), which spans [0, 1]; zero outside."""
    if not grid.numel():
        return grid.new_zeros(*places.shape[:-1], grid.shape[2])
    columns, rows = (
        (1 - (place[..., None] * size - 0.5 - torch.arange(size, dtype=grid.dtype)).abs()).clamp(min=0).nan_to_num(0)
        for place, size in zip(places.unbind(-1), (grid.shape[1], grid.shape[0])))
    return torch.einsum("...r,...c,rcd->...d", rows, columns, grid)
