"""Damages of checkpoints: every entry becomes another value, is missing, or gets company; bytes of the file change."""
import copy
import math
import random
import warnings

import torch


def odd_values():
    """Values that no entry expects, by name."""
    with warnings.catch_warnings():  # sparse, nested and quantised tensors are announced as beta
        warnings.simplefilter("ignore")
        tensors = {
            "sparse": torch.eye(2).to_sparse(), "csr": torch.eye(2).to_sparse_csr(),
            "nested": torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), "complex": torch.zeros(2) * 1j,
            "meta": torch.empty(2, device="meta"), "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0,
                                                                                           torch.quint8),
        }
    return {
        "None": None, "True": True, "minus one": -1, "minus two": -2, "zero": 0, "one": 1, "huge": 10**30,
        "huge negative": -10**30, "beyond floats": 10**400, "half": 0.5, "nan": math.nan, "inf": math.inf,
        "minus inf": -math.inf, "text": "x", "bytes": b"x", "empty list": [], "empty dict": {}, "tuple": (1, 2),
        "list of None": [None], "dict": {"a": 1}, "dict by number": {0: 1}, "list of dicts": [{}], "set": {1},
        "float tensor": torch.zeros(2, 3), "scalar tensor": torch.tensor(3.0), "whole tensor": torch.tensor([1, 2]),
        "bool tensor": torch.tensor(True), "empty tensor": torch.zeros(0), "bytes tensor": torch.zeros(7).byte(),
        "double": torch.tensor([1e300, 1.0], dtype=torch.float64), **tensors,
    }


def of_a_tensor(tensor):
    """The same tensor, spoilt: its shape stays."""
    spoilt = {"as complex": tensor.to(torch.complex64), "on meta": tensor.to("meta"), "as bool": tensor.bool()}
    if tensor.is_floating_point():
        spoilt |= {"of NaN": torch.full_like(tensor, math.nan), "of inf": torch.full_like(tensor, math.inf),
                   "negative": -1 - tensor.abs(), "as whole numbers": tensor.long(),
                   "too large": torch.full_like(tensor, 1e300, dtype=torch.float64)}
        if tensor.dim():
            spoilt["as sparse"] = tensor.to_sparse()
    else:
        spoilt |= {"as floats": tensor.double(), "of ones": torch.ones_like(tensor)}
    return spoilt


def paths(content, depth):
    """The keys that lead to every entry and to what lies in it, down to `depth`."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in paths(value, depth - 1))


def entry(content, path):
    for key in path:
        content = content[key]
    return content


def mutations(content, depth=5):
    """(description, damaged copy) for every entry and every damage."""
    values = odd_values()
    for path in [(), *paths(content, depth)]:
        name = ".".join(map(str, path))
        if path:
            old = entry(content, path)
            own = of_a_tensor(old) if isinstance(old, torch.Tensor) else {}
            for kind, value in {**values, **own}.items():
                yield f"{name} = {kind}", changed(content, path, lambda place, key, v=value: place.__setitem__(key, v))
            yield f"{name} missing", changed(content, path, lambda place, key: place.__delitem__(key))
        if isinstance(entry(content, path), dict):
            for key in ("extra", 77):
                for kind in ("None", "text", "float tensor", "meta"):
                    yield f"{name} with {key} = {kind}", changed(
                        content, (*path, key), lambda place, key, v=values[kind]: place.__setitem__(key, v))


def changed(content, path, change):
    """A copy, as deep as the path is long, in which `change(dict or list, key)` was applied."""
    content = copy.copy(content)
    if len(path) == 1:
        change(content, path[0])
    else:
        content[path[0]] = changed(content[path[0]], path[1:], change)
    return content


def broken_files(data, count, seed):
    """(description, bytes): cut at drawn places, or with one to four bits changed. Every second one at the start."""
    draw = random.Random(seed)
    for i in range(count):
        end = len(data) if i % 2 else min(len(data), 2000)
        if i % 5 == 0:
            cut = draw.randrange(end)
            yield f"cut at {cut}", data[:cut]
            continue
        flipped = bytearray(data)
        places = [draw.randrange(end) for _ in range(draw.randint(1, 4))]
        for place in places:
            flipped[place] ^= 1 << draw.randrange(8)
        yield f"changed at {places}", bytes(flipped)
