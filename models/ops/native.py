"""The compiled operators: loads lite_detr_ops (built from models/ops/src) and registers their shapes, gradients and
cost with torch.

B batch, Q queries, N tokens of all levels, M heads, D channels per head, L levels, P points.
"""
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

VERSION = 2  # of the interface between these files and the compiled ones
MAX_LEVELS = 16  # kMaxLevels of src/problem.h
BUILD_COMMAND = "pip install --no-build-isolation ./models/ops"

problem: str | None = None  # why the compiled operators do not run here
try:
    import lite_detr_ops as _library
except ImportError as error:
    _library, problem = None, f"the compiled operators cannot be imported ({error})"
else:
    if _library.version != VERSION:
        problem = f"the compiled operators are of version {_library.version}, the code needs {VERSION}"


def available(device_type: str) -> bool:
    """Whether the compiled operators run on "cpu", "cuda" or (shapes only) "meta"."""
    return problem is None and (device_type in ("cpu", "meta") or (device_type == "cuda" and bool(_library.with_cuda)))


def missing(device_type: str) -> str:
    """Why they do not run on a device, and what to do."""
    if problem is None and device_type == "cuda":
        return (f"the compiled operators were built without CUDA. They need nvcc of CUDA {torch.version.cuda}; then "
                f"build them with: FORCE_CUDA=1 {BUILD_COMMAND}")
    return f"{problem or f'there are no compiled operators for {device_type}'}; build them with: {BUILD_COMMAND}"


def cpu_kernels() -> str:
    """Which of the CPU kernels run here: "avx512", "avx2" or "portable"; narrower ones where the channels do not fit.

    Raises ValueError if DEFORM_ATTN_CPU is none of these.
    """
    return torch.ops.deform_attn.cpu_kernels()


def key_aware_deform_attn(query: Tensor, key: Tensor, value: Tensor, spatial_shapes: list[tuple[int, int]],
                          sampling_locations: Tensor) -> Tensor:
    """See models.ops.functional."""
    distinct_key = None if key is value else key
    flat = [size for shape in spatial_shapes for size in shape]
    return torch.ops.deform_attn.key_aware_deform_attn(query, distinct_key, value, flat, sampling_locations)[0]


def ms_deform_attn(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor,
                   attention_weights: Tensor) -> Tensor:
    """See models.ops.functional."""
    flat = [size for shape in spatial_shapes for size in shape]
    return torch.ops.deform_attn.ms_deform_attn(value, flat, sampling_locations, attention_weights)


def _output(value: Tensor, locations: Tensor) -> Tensor:
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


def _gradients(wanted: list[bool], first: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """New tensors in the shapes of the operands, empty ones where no gradient is wanted. A missing key has query's
    dtype.
    """
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) if want and x is not None
                 else (first if x is None else x).new_empty(0) for want, x in zip(wanted, (first, *others)))


def _kda_shapes(query, key, value, spatial_shapes, locations):
    return _output(value, locations), locations.new_empty(locations.shape[:3])


def _kda_backward_shapes(grad, query, key, value, spatial_shapes, locations, output, log_sum_exp, wanted):
    return _gradients(wanted, query, key, value, locations)


def _msda_shapes(value, spatial_shapes, locations, weights):
    return _output(value, locations)


def _msda_backward_shapes(grad, value, spatial_shapes, locations, weights, wanted):
    return _gradients(wanted, value, locations, weights)


def _kda_save(ctx, inputs, output):
    query, key, value, ctx.spatial_shapes, locations = inputs
    ctx.save_for_backward(query, key, value, locations, *output)
    ctx.mark_non_differentiable(output[1])


def _kda_backward(ctx, grad_output, _):
    query, key, value, locations, output, log_sum_exp = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[1], needs[2], needs[4]]
    grads = torch.ops.deform_attn.key_aware_deform_attn_backward(
        grad_output, query, key, value, ctx.spatial_shapes, locations, output, log_sum_exp, wanted)
    query, key, value, locations = (grad if want else None for grad, want in zip(grads, wanted))
    return query, key, value, None, locations


def _msda_save(ctx, inputs, output):
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _msda_backward(ctx, grad_output):
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[2], needs[3]]
    value, locations, weights = ctx.saved_tensors
    grads = torch.ops.deform_attn.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights, wanted)
    value, locations, weights = (grad if want else None for grad, want in zip(grads, wanted))
    return value, None, locations, weights


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("the compiled deformable attention has no second derivative; "
                       "compute it in: with models.ops.implementation('torch')")


def _samples(value: tuple, locations: tuple) -> int:
    """How many sampled numbers a call has: points of all queries and heads times channels."""
    return torch.Size(locations[:-1]).numel() * value[-1]


# In FLOPs, two a multiply-add: four for a bilinear sample, one for query times key, one for the weighted sum.
def _kda_flops(query, key, value, spatial_shapes, locations, *args, out_shape=None, **kwargs) -> int:
    return 2 * (6 if key is None else 10) * _samples(value, locations)


def _msda_flops(value, spatial_shapes, locations, *args, out_shape=None, **kwargs) -> int:
    return 2 * 5 * _samples(value, locations)


def _register() -> None:
    ops = torch.ops.deform_attn
    library = torch.library
    library.register_fake("deform_attn::key_aware_deform_attn", _kda_shapes)
    library.register_fake("deform_attn::key_aware_deform_attn_backward", _kda_backward_shapes)
    library.register_fake("deform_attn::ms_deform_attn", _msda_shapes)
    library.register_fake("deform_attn::ms_deform_attn_backward", _msda_backward_shapes)
    library.register_autograd("deform_attn::key_aware_deform_attn", _kda_backward, setup_context=_kda_save)
    library.register_autograd("deform_attn::ms_deform_attn", _msda_backward, setup_context=_msda_save)
    for name in ("key_aware_deform_attn_backward", "ms_deform_attn_backward"):
        library.register_autograd(f"deform_attn::{name}", _no_second_derivative)
    for operator, formula in ((ops.key_aware_deform_attn, _kda_flops), (ops.ms_deform_attn, _msda_flops)):
        # torch 2.4 registers the formula under a key that it does not look up.
        flop_registry[operator] = register_flop_formula(operator)(formula)


if problem is None:
    _register()
