"""Calls the compiled operators with random shapes, strides and locations: python tools/soak_operator.py SEED SECONDS

For tools/soak.py, which runs it under AddressSanitizer. Prints the number of calls, each forward and backward.
"""
import argparse
import random
import time

import torch
from torch import Tensor

from common import run_tool, tool_parser
from models.ops import functional, key_aware_deform_attn, ms_deform_attn

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CHANNELS = (1, 3, 4, 8, 16, 30, 32, 64, 71)
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


def main(args: argparse.Namespace) -> None:
    draw, end, calls = random.Random(args.seed), time.monotonic() + args.seconds, 0
    torch.manual_seed(args.seed)
    with functional.implementation("native"):
        while time.monotonic() < end:
            call(draw)
            calls += 1
    print(f"{calls} calls")


def call(draw: random.Random) -> None:
    """Forward and backward of one of the operators, also with empty maps, batches and queries."""
    shapes = [(draw.randrange(0, 9), draw.randrange(0, 9)) for _ in range(draw.randint(1, 5))]
    batch, queries, heads, points = draw.randrange(0, 3), draw.randrange(0, 40), draw.randint(1, 4), draw.randint(1, 5)
    tokens, channels, dtype = sum(h * w for h, w in shapes), draw.choice(CHANNELS), draw.choice(DTYPES)
    places = (batch, queries, heads, len(shapes), points)

    def operand(*size: int) -> Tensor:
        return strided(torch.randn(*size).to(dtype), draw).requires_grad_()

    locations = torch.randn(*places, 2) * draw.choice([0.5, 3, 1e9]) + 0.5
    if locations.numel() and draw.random() < 0.3:
        locations.view(-1)[draw.randrange(locations.numel())] = draw.choice(NOT_FINITE)
    locations = strided(locations, draw).requires_grad_()
    value = operand(batch, tokens, heads, channels)
    if draw.random() < 0.5:
        weights = strided(torch.rand(*places), draw).requires_grad_()
        out = ms_deform_attn(value, shapes, locations, weights)
    else:
        key = value if draw.random() < 0.5 else operand(batch, tokens, heads, channels)
        out = key_aware_deform_attn(operand(batch, queries, heads, channels), key, value, shapes, locations)
    out.float().sum().backward()


def strided(x: Tensor, draw: random.Random) -> Tensor:
    """The same values, contiguous, transposed in memory, with gaps, or as the first part of a larger tensor."""
    kind = draw.randrange(4)
    if kind == 1 and x.dim() > 2:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == 2:
        return torch.stack([x, x], -1)[..., 0]
    return torch.cat([x, x])[: len(x)] if kind == 3 else x


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("seconds", type=float)
    run_tool(main, parser.parse_args())
