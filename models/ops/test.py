"""Checks the compiled operators against the plain ones: python test.py, after the build. Every line must say True.

On the CPU, and on the GPU where they are built for one. The exit status is 1 if a check fails.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from models.ops import implementation, key_aware_deform_attn, ms_deform_attn, native_available
from models.ops.native import BUILD_COMMAND, missing

SHAPES = [(6, 4), (3, 2)]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def operands(device: str, dtype: torch.dtype, channels: int) -> dict[str, Tensor]:
    """Random operands. Locations stay away from whole pixels, where their gradient jumps."""
    generator = torch.Generator().manual_seed(channels)
    batch, queries, heads, points, tokens = 2, 5, 2, 2, sum(h * w for h, w in SHAPES)

    def random(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    sizes = torch.tensor([(w, h) for h, w in SHAPES])[:, None]
    pixels = (random(batch, queries, heads, len(SHAPES), points, 2) * (sizes + 2)).floor() - 1
    locations = (pixels + 0.6 + 0.3 * random(*pixels.shape)) / sizes  # between pixel centres, some outside
    weights = random(*locations.shape[:-1]).flatten(3).softmax(-1).view(locations.shape[:-1])
    operands = {name: random(batch, count, heads, channels) - 0.5
                for name, count in (("query", queries), ("key", tokens), ("value", tokens))}
    operands |= {"locations": locations, "weights": weights}
    sums = torch.promote_types(dtype, torch.float32)
    return {name: x.to(device, sums if name in ("locations", "weights") else dtype) for name, x in operands.items()}


def run(form: str, x: dict[str, Tensor]) -> Tensor:
    """One of the three forms of the operators."""
    if form == "ms_deform_attn":
        return ms_deform_attn(x["value"], SHAPES, x["locations"], x["weights"])
    key = x["value"] if form == "key_aware_deform_attn, key is value" else x["key"]
    return key_aware_deform_attn(x["query"], key, x["value"], SHAPES, x["locations"])


FORMS = ("key_aware_deform_attn, key is value", "key_aware_deform_attn, distinct key", "ms_deform_attn")


def output_and_gradients(form: str, x: dict[str, Tensor]) -> list[Tensor]:
    x = {name: tensor.detach().clone().requires_grad_() for name, tensor in x.items()}
    output = run(form, x)
    output.backward(torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output).to(output.dtype))
    return [output.detach(), *(tensor.grad for tensor in x.values() if tensor.grad is not None)]


def agrees_with_pytorch(form: str, device: str, dtype: torch.dtype, channels: int) -> tuple[bool, float]:
    """Output and all gradients against the plain operator in float64; the worst relative error."""
    x = operands(device, dtype, channels)
    with implementation("native"):
        ours = output_and_gradients(form, x)
    with implementation("torch"):
        theirs = output_and_gradients(form, {name: tensor.double() for name, tensor in x.items()})
    error = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs))
    return len(ours) == len(theirs) and error < TOLERANCE[dtype], error


def gradient_is_numerical(form: str, device: str, channels: int) -> bool:
    x = operands(device, torch.float64, channels)
    operands_of = {"ms_deform_attn": ["value", "locations", "weights"], FORMS[0]: ["query", "value", "locations"]}
    names = operands_of.get(form, ["query", "key", "value", "locations"])
    inputs = [x[name].requires_grad_() for name in names]
    with implementation("native"):
        return torch.autograd.gradcheck(lambda *args: run(form, dict(zip(names, args))), inputs,
                                        nondet_tol=1e-9 if device == "cuda" else 0, raise_exception=False)


def main() -> int:
    if not native_available("cpu"):
        print(f"The compiled operators are not built for this Python. Build them with: {BUILD_COMMAND}")
        return 1
    results = []
    devices = ["cpu"] + (["cuda"] if native_available("cuda") and torch.cuda.is_available() else [])
    for device in devices:
        for form in FORMS:
            for dtype in TOLERANCE:
                for channels in (30, 32, 64, 71):
                    good, error = agrees_with_pytorch(form, device, dtype, channels)
                    results.append(good)
                    name = str(dtype).removeprefix("torch.")
                    print(f"* {good} {form}: {device} {name} D={channels} agrees with PyTorch, error {error:.1e}")
            for channels in (8, 30):
                good = gradient_is_numerical(form, device, channels)
                results.append(good)
                print(f"* {good} {form}: {device} D={channels} gradient agrees with differences")
    if torch.cuda.is_available() and not native_available("cuda"):
        print(f"Not checked on the GPU: {missing('cuda')}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
