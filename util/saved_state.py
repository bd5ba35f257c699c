"""What the entries of a training's checkpoint must be. All are checked before any is used: a damaged file changes
nothing."""
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from util.errors import UserError

Check = Callable[[Any], bool]
LARGEST = 2**53  # of whole numbers: floats count exactly up to here
MOST_CLASSES = 100_000
MOST_NESTED = 20  # lists and dicts of a config in each other
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's tensors of a parameter


def tensor_fault(value: Any, shape: torch.Size | None = None) -> str:
    """What makes a value useless as a tensor of real numbers: in words, or empty if nothing does."""
    if not isinstance(value, Tensor):
        return f"is {described(value)} and no tensor"
    kinds = {"nested": value.is_nested, "on the meta device, without numbers": value.is_meta,
             "quantised": value.is_quantized, "complex": value.is_complex(), "sparse": value.layout != torch.strided}
    fault = next((kind for kind, found in kinds.items() if found), "")
    if not fault and shape is not None and value.shape != shape:
        return f"has the shape {tuple(value.shape)} instead of {tuple(shape)}"
    if not fault and value.is_floating_point() and not value.float().isfinite().all():
        return "holds NaN or infinite numbers"
    return fault and f"is {fault}"


def described(value: Any) -> str:
    """A short description for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"{value[:40]!r}" if isinstance(value, str) else f"a {type(value).__name__}"


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Also infinities, but not NaN and no whole number that a float cannot hold."""
    return isinstance(value, float) and least <= value <= most or is_whole(value, -LARGEST) and least <= value <= most


def is_class_names(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        is_whole(i, 0) and i < MOST_CLASSES and isinstance(name, str) for i, name in value.items())


def is_plain(value: Any, most_nested: int = MOST_NESTED) -> bool:
    """Whether a value is one that a config can hold."""
    if isinstance(value, (list, tuple)):
        return most_nested > 0 and all(is_plain(item, most_nested - 1) for item in value)
    if isinstance(value, dict):
        return most_nested > 0 and all(isinstance(key, str) and is_plain(item, most_nested - 1)
                                       for key, item in value.items())
    return value is None or isinstance(value, (bool, str, float)) or is_whole(value, -LARGEST)


def _is_scaler(value: Any) -> bool:
    """Of torch.amp.GradScaler, empty where half precision is off."""
    positive = ("scale", "growth_factor", "backoff_factor")
    counts = ("growth_interval", "_growth_tracker")
    return isinstance(value, dict) and (not value or (
        all(is_number(value.get(name), 1e-30, 1e30) for name in positive)
        and all(is_whole(value.get(name), 0) for name in counts)))


def _is_meters(value: Any) -> bool:
    sums, counts = (value.get("sums"), value.get("counts")) if isinstance(value, dict) else (None, None)
    return (isinstance(sums, dict) and isinstance(counts, dict) and sums.keys() == counts.keys()
            and all(isinstance(name, str) for name in sums)
            # A gradient norm in half precision may be NaN: such a step is left out.
            and all(isinstance(total, float) or is_number(total) for total in sums.values())
            and all(is_whole(count, 1) for count in counts.values()))


def _is_random(value: Any) -> bool:
    """A list with the random state of each process."""
    return isinstance(value, list) and all(
        isinstance(state, dict) and _is_generator(state.get("cpu"))
        and ("cuda" not in state or _is_bytes(state["cuda"])) for state in value)


def _is_bytes(value: Any) -> bool:
    return not tensor_fault(value) and value.dtype == torch.uint8 and value.dim() == 1


def _is_generator(value: Any) -> bool:
    if not _is_bytes(value):
        return False
    try:
        torch.Generator().set_state(value)
    except RuntimeError:
        return False
    return True


def _is_updates(value: Any) -> bool:
    number = value.item() if not tensor_fault(value, torch.Size()) else value
    return is_whole(number, 1)


WHOLE = "a whole number that is not negative"
ENTRIES: dict[str, tuple[Check, str]] = {
    "epoch": (lambda value: is_whole(value, -1), "the number of an epoch"),
    "step": (lambda value: is_whole(value, 0), WHOLE),
    "images_per_step": (lambda value: is_whole(value, 1), "a whole number above 0"),
    "best": (lambda value: is_number(value, most=1), "an AP"),
    "stale": (lambda value: is_whole(value, 0), WHOLE),
    "grad_norm": (lambda value: isinstance(value, float) or is_whole(value, 0), "a number"),
    "seconds": (lambda value: is_number(value, 0, LARGEST), "a number, at least 0"),
    "meters": (_is_meters, "sums and counts by name"),
    "scaler": (_is_scaler, "the state of a gradient scaler"),
    "rng": (_is_random, "a list with the random numbers' state of each process"),
    "ema_updates": (_is_updates, "a whole number above 0"),
    "config": (lambda value: isinstance(value, dict) and is_plain(value), "config keys with plain values"),
    "class_names": (is_class_names, f"names by category ids from 0 to {MOST_CLASSES - 1}"),
}
OPTIONAL = {"stale", "seconds", "ema_updates", "config", "class_names"}


def check_entries(state: Mapping[str, Any], source: str, names: set[str] | None = None) -> None:
    """Raises UserError for the first entry that is not what it must be. Without `names` these are all that a training
    needs except the tensors, and those that must not be missing are demanded."""
    for name, (check, wanted) in ENTRIES.items():
        if names is not None and name not in names:
            continue
        if name not in state:
            if names is not None or name in OPTIONAL:
                continue
            raise damaged(source, f"its entry {name!r} is missing")
        if not check(state[name]):
            value = described(state[name])
            raise damaged(source, f"its entry {name!r} must be {wanted}" + ("" if value.startswith("a dict")
                                                                            else f", not {value}"))
    if names is None and ("ema_model" in state) != ("ema_updates" in state):
        raise damaged(source, "of its entries 'ema_model' and 'ema_updates' one is missing")


def damaged(source: str, fault: str) -> UserError:
    return UserError(f"{source}: {fault}. The file is damaged, or of another program")


def optimizer_state(saved: Any, optimizer: Optimizer, source: str) -> dict[str, Any]:
    """What `optimizer.load_state_dict` may read of a saved state: rates, decays and moments. How the steps are
    computed, such as fused, stays the optimizer's own.

    Raises UserError where the state is damaged or belongs to other parameters.
    """
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    if (not isinstance(groups, list) or not isinstance(saved.get("state"), dict)
            or not all(isinstance(group, dict) and _is_index_list(group.get("params")) for group in groups)):
        raise damaged(source, "its entry 'optimizer' must have a 'state' and 'param_groups'")
    own = optimizer.state_dict()["param_groups"]
    sizes, wanted = ([len(group["params"]) for group in some] for some in (groups, own))
    indices = [index for group in groups for index in group["params"]]
    if sizes != wanted:
        raise UserError(f"{source}: its optimizer has other parameter groups (param_dict_type, lr_backbone or freezing "
                        f"differ): {sizes} parameters instead of {wanted}")
    if len(set(indices)) != len(indices):
        raise damaged(source, "its entry 'optimizer' lists a parameter twice")
    parameters = dict(zip(indices, (parameter for group in optimizer.param_groups for parameter in group["params"])))
    moments = {}
    for index, state in saved["state"].items():
        if index not in parameters:
            raise damaged(source, f"its entry 'optimizer' has a state of {described(index)}, which is no parameter")
        moments[index] = _moments(state, parameters[index], f"optimizer.state.{index}", source)
    return {"state": moments, "param_groups": [
        _group(group, template, f"optimizer.param_groups.{i}", source)
        for i, (group, template) in enumerate(zip(groups, own))]}


def _is_index_list(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(index, 0) for index in value)


def _group(saved: dict[str, Any], own: dict[str, Any], entry: str, source: str) -> dict[str, Any]:
    """The own group with the saved numbers. Those that a schedule added to one of them only stay as they are."""
    group = {**own, "params": saved["params"]}
    for name in ("lr", "initial_lr", "weight_decay", "eps", "betas"):
        if name not in saved and name in own:
            raise damaged(source, f"its entry {entry} has no {name!r}")
    for name, value in own.items():
        if name not in saved or not isinstance(value, (float, tuple)):
            continue
        if isinstance(value, tuple):  # betas
            fits = isinstance(saved[name], (list, tuple)) and len(saved[name]) == len(value) and all(
                is_number(number, 0, math.nextafter(1, 0)) for number in saved[name])
        else:
            fits = is_number(saved[name], 0, 1e30)
        if not fits:
            raise damaged(source, f"its entry {entry}.{name} is {described(saved[name])}")
        group[name] = tuple(saved[name]) if isinstance(value, tuple) else saved[name]
    return group


def _moments(state: Any, parameter: Tensor, entry: str, source: str) -> dict[str, Tensor]:
    """Step and moments of a parameter."""
    if not isinstance(state, dict):
        raise damaged(source, f"its entry {entry} is {described(state)}")
    for name, shape in {"step": torch.Size(), **dict.fromkeys(MOMENTS, parameter.shape)}.items():
        if name not in state:
            raise damaged(source, f"its entry {entry} has no {name!r}")
        fault = tensor_fault(state[name], shape)
        if not fault and name != "exp_avg" and (state[name] < 0).any():
            fault = "holds negative numbers"
        if not fault and not state[name].is_floating_point():
            fault = f"is {described(state[name])}"
        if fault:
            raise damaged(source, f"its entry {entry}.{name} {fault}")
    return {name: state[name].clone() for name in ("step", *MOMENTS)}
