"""The mean of the weights of several checkpoints: Izmailov et al. 2018 (SWA), Wortsman et al. 2022 (model soups)."""
from collections.abc import Iterable

import torch
from torch import Tensor

from util.errors import UserError
from util.saved_state import tensor_fault


def mean_weights(states: Iterable[tuple[str, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The mean of state dicts, each with its name for messages; in the types of the first, computed in float64.

    Tensors of integers and booleans are copied. Raises UserError for names, shapes or types that differ, for such
    tensors that are not the same everywhere, and for NaN and infinite numbers.
    """
    sums: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    source, count = "", 0
    for name, state in states:
        for key, tensor in state.items():
            if fault := tensor_fault(tensor):
                raise UserError(f"{name}: {key} {fault}")
        if not count:
            source, first = name, state
            sums = {key: tensor.to(torch.float64, copy=True) for key, tensor in state.items()
                    if tensor.is_floating_point()}
        else:
            _check_alike(first, state, source, name)
            for key, total in sums.items():
                total += state[key]
        count += 1
    return {key: (sums[key] / count).to(tensor.dtype) if key in sums else tensor for key, tensor in first.items()}


def _check_alike(first: dict[str, Tensor], state: dict[str, Tensor], source: str, name: str) -> None:
    odd = sorted(first.keys() ^ state.keys())
    if odd:
        raise UserError(f"{odd[0]} ({len(odd)} such tensors) is only in {source if odd[0] in first else name}: "
                        f"{source} and {name} are no checkpoints of the same detector")
    for key, tensor in first.items():
        for found, wanted in ((tuple(state[key].shape), tuple(tensor.shape)), (state[key].dtype, tensor.dtype)):
            if found != wanted:
                raise UserError(f"{key} is {wanted} in {source} and {found} in {name}")
        if not tensor.is_floating_point() and not torch.equal(tensor, state[key]):
            raise UserError(f"{key}, which cannot be averaged, differs between {source} and {name}")
