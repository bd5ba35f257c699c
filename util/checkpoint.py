"""Reading and writing checkpoints. Files are opened with weights_only=True: they cannot run code."""
import argparse
import collections
import hashlib
import json
import logging
import os
import pathlib
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from util import model_card, zoo
from util.download import cached
from util.errors import UserError
from util.file_kind import file_kind, is_safetensors
from util.files import atomic_write, cannot_write
from util.foreign_names import CLASS_TENSORS, in_our_names, origin
from util.model_card import ModelCard
from util.saved_state import check_entries, is_class_names, tensor_fault
from util.shortened import QUERY_TENSORS, shortened_state

logger = logging.getLogger(__name__)

# Types without behaviour that programs put beside their weights: arguments, scalars and arrays of NumPy, paths, counts.
# The second name of each is the one that a file may hold: that of a module of an older version, or of another system.
_NUMPY = [(value.__reduce__()[0], f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
          for name, value in (("scalar", np.float64()), ("_reconstruct", np.zeros(0)))]
_PATHS = [(kind, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for kind, name in (
    (pathlib.PurePosixPath, "PosixPath"), (pathlib.PurePosixPath, "PurePosixPath"),
    (pathlib.PureWindowsPath, "WindowsPath"), (pathlib.PureWindowsPath, "PureWindowsPath"))]
# PyTorch fills no others than plain dicts and lists.
_PLAIN = [(lambda *factory: {}, "collections.defaultdict"), (lambda items=(), most=None: [*items], "collections.deque")]
HARMLESS: list[Any] = [
    argparse.Namespace, collections.Counter, dict, list, set, int, float, str, *_PLAIN, np.ndarray,
    np.dtype, *_NUMPY, *_PATHS,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdgFDSUMm"}]  # no Python objects in arrays

# Buffers that follow from the architecture, and training leftovers: neither loaded nor missed.
_DERIVED = re.compile(r"(relative_position_index|attn_mask|num_batches_tracked)$")
# First words of the published SDETR's names, stage 1 reading C5 and stage 2 C4; ours go by stage and by level.
_PUBLISHED_SDETR = {"mytransformer1": "stages.0", "query_embed1": "query_embed.0", "input_proj1": "input_proj.1",
                    "mytransformer2": "stages.1", "query_embed2": "query_embed.1", "input_proj2": "input_proj.0"}
# Where programs keep weights, and averaged ones; in these they may lie one level deeper (RT-DETR: ema.module).
_WEIGHTS, _AVERAGES = ("model", "state_dict", "model_state_dict"), ("ema_model", "ema", "model_ema", "state_dict_ema")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "detector.")  # DDP, torch.compile, Lightning and the like


def read_checkpoint(source: str | os.PathLike) -> dict[str, Any]:
    """The dict in a .pth file, a safetensors file (as {"model": ...}, with what its metadata say), behind an https
    URL, or of weights that util.zoo knows by name.

    "config" and "class_names" are there only as this program writes them, the config also from util.zoo; "card" is the
    ModelCard of a safetensors file. Raises UserError for a missing or unreadable file, and says what it is where that
    is known.
    """
    path, entry = _local_file(str(source))
    try:
        content = _read(path)
    except UserError:
        raise
    except Exception as error:
        kind = file_kind(path)
        if kind:
            raise UserError(f"{path} is no checkpoint: it is {kind}") from error
        raise UserError(f"{path} is not a checkpoint that can be read safely: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    config = content.get("config")
    ours = isinstance(config, dict) and (not config or "modelname" in config)
    for name in {"config", "class_names"} & content.keys():
        usable = ours if name == "config" else ours and isinstance(content[name], dict) or is_class_names(content[name])
        if not usable:
            logger.info("%s: its %s is of another program and not used", path, name)
            del content[name]
    check_entries(content, str(path), {"config", "class_names"})
    if entry is not None and "config" not in content:
        content["config"] = entry.load_config().to_dict()
    return content


def _local_file(source: str) -> tuple[Path, zoo.Entry | None]:
    """A file, that behind an address, or that of a name; a file of that name comes first."""
    if source.startswith("https://"):
        return cached(source), None
    path = Path(source)
    entry = None if path.is_file() else zoo.find(source)
    if entry is not None:
        path = zoo.weights_path(entry)
    if not path.is_file():
        hint = "" if path.suffix or len(path.parts) > 1 or path.exists() else f", and {zoo.unknown(source)}"
        raise UserError(f"no checkpoint file {path}{hint}")
    return path, entry


def _read(path: Path) -> Any:
    if is_safetensors(path):
        return _read_safetensors(path)
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # what PyTorch thinks of odd files is in its errors too
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """One line, without PyTorch's advice to load the file unsafely."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        unknown = re.search(r"GLOBAL ([\w.]+)", text)
        return ("it was not written by torch.save, is damaged, or holds more than tensors and plain values"
                + (f" ({unknown[1]}): save only the model's state_dict()" if unknown else ""))
    return text.strip().split("\n")[0] or f"it is damaged ({type(error).__name__})"


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in file.keys()}}
        metadata = file.metadata() or {}
    if model_card.KEY in metadata:  # tools/export_weights.py puts it there
        card = content["card"] = ModelCard.from_json(metadata[model_card.KEY], str(path))
        content |= {"config": card.config} | ({"class_names": card.class_names} if card.class_names else {})
    elif "class_names" in metadata:  # of a file that is older than the card
        try:
            content["class_names"] = {int(i): name for i, name in json.loads(metadata["class_names"]).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: its class_names must be a JSON object of ids and names") from error
    return content


def write_checkpoint(content: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes a file that is either complete or absent.

    Raises UserError if it cannot be written (full disk); an earlier file of that name is then intact.
    """
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's writer turns OSErrors into RuntimeErrors
        raise cannot_write(Path(path), error) from error


def copy_checkpoint(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Gives a checkpoint a second name, without the space of a second file where the disk has hard links.

    Later checkpoints do not change the copy: write_checkpoint replaces files and never writes into them.
    """
    if os.path.exists(target) and os.path.samefile(source, target):
        return
    with atomic_write(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def model_state(checkpoint: Mapping[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """The weights inside a checkpoint, without the prefixes of what a model was wrapped in: a bare state dict, or the
    entry of that name, or with `ema` the average's, if present. Where there is no other, the average counts as well."""
    containers = (*_AVERAGES, *_WEIGHTS) if ema else (*_WEIGHTS, *_AVERAGES)
    found = next((state for name in containers if (state := _tensors(checkpoint.get(name)))), None)
    state = found or _tensors(checkpoint)
    if not state:
        raise UserError(f"the checkpoint holds no weights; its entries are {sorted(map(str, checkpoint))[:10]}")
    return _unwrapped(state)


def checksum(checkpoint: Mapping[str, Any], ema: bool = False) -> str:
    """Of the weights that model_state gives: the same for a checkpoint of this program and for the state dict of a
    model that has loaded it, on any device. Another number gives another one, but not the precision in which it is
    stored: what counts are the float32 numbers that a model loads."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model_state(checkpoint, ema).items()):
        if not _DERIVED.search(name):
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a dict, or of the dict of weights that it holds."""
    if not isinstance(content, Mapping):
        return {}
    for name in ("module", *_WEIGHTS):
        if name in content and (state := _tensors(content[name])):
            return state
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {key.replace("._orig_mod.", "."): value for key, value in state.items()
             if not key.startswith("criterion.")}  # of a training loop that holds both
    while state and not origin(state):  # a prefix may belong to the names of a known origin
        prefix = next((word for word in _WRAPPERS if all(key.startswith(word) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, checkpoint: str | os.PathLike | dict[str, Any], strict: bool = True,
                 ema: bool = False, shortened: bool = False) -> None:
    """Loads released or own weights into a model; only here are published layouts mapped to ours.

    Raises UserError with the missing, unexpected, mismatched and unusable tensors. With strict=False, missing and
    unexpected ones are logged instead. shortened: a model for detection alone may have fewer queries and decoder layers
    than the weights, and uses the first ones.
    """
    name = "the checkpoint" if isinstance(checkpoint, dict) else str(checkpoint)
    content = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint)
    model.load_state_dict(fitting_weights(model, model_state(content, ema), name, strict, shortened), strict=False)


def fitting_weights(model: nn.Module, weights: dict[str, Tensor], name: str, strict: bool = True,
                    shortened: bool = False) -> dict[str, Tensor]:
    """The weights under the model's names. Raises UserError as load_weights does, and changes nothing."""
    own = model.state_dict()
    state = to_our_layout(weights, own, shortened)
    missing, unexpected, mismatched = compare_states(state, own)
    check_numbers(state, own, name)
    problems = listed_tensors("missing", missing) + listed_tensors("unexpected", unexpected)
    if mismatched or (strict and problems):
        problems += listed_tensors("of another shape (checkpoint, model)", mismatched)
        raise UserError(f"{name} does not fit the model that the config describes:\n" + "\n".join(problems)
                        + _advice([line.split()[0] for line in mismatched], state))
    for line in problems:
        logger.warning("%s: %s", name, line)
    return {key: value for key, value in state.items() if key in own}


def to_our_layout(state: dict[str, Tensor], own: dict[str, Tensor], shortened: bool = False) -> dict[str, Tensor]:
    """A checkpoint's state dict under the names of `own`, the model's, without what a model never loads. A shared
    parameter has several names: one of them suffices. shortened: see load_weights."""
    state = in_our_names(state)
    if "backbone.0.patch_embed.proj.weight" in own:  # H-DETR keeps its Swin one level deeper
        state = {key.replace("backbone.0.body.", "backbone.0."): value for key, value in state.items()}
    state = {our_name(key): value for key, value in state.items()
             if not (_DERIVED.search(key) or _is_unused(key, own))}
    if shortened:
        state = shortened_state(state, own)
    for names in shared_names(own):
        saved = next((state[name] for name in names if name in state), None)
        if saved is not None:
            state |= {name: saved for name in names if name not in state}
    return state


def shared_names(own: dict[str, Tensor]) -> list[list[str]]:
    """The names of each parameter that has several."""
    groups: dict[tuple, list[str]] = {}
    for name, value in own.items():
        if value.numel() and not value.is_meta:
            groups.setdefault((value.device, value.data_ptr(), value.shape), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def our_name(key: str) -> str:
    """This project's name of a published parameter."""
    part, dot, rest = key.partition(".")
    return _PUBLISHED_SDETR.get(part, part) + dot + rest


def _is_unused(key: str, own: dict[str, Tensor]) -> bool:
    """The published plain deformable attention carries projections of queries and keys that it never uses."""
    found = re.match(r"(.*)(query|key)_proj\.", key)
    return found is not None and key not in own and f"{found[1]}attention_weights.weight" in own


def check_numbers(state: dict[str, Tensor], own: dict[str, Tensor], source: str) -> None:
    """Raises UserError for tensors that a model would load and that are no numbers of its kind: NaN or infinite, also
    once they have its precision, sparse, complex and the like; and for one parameter with several values."""
    faults = []
    for key in own.keys() & state.keys():
        value = state[key]
        fault = tensor_fault(value)
        if not fault and value.is_floating_point() != own[key].is_floating_point():
            fault = f"is of {str(value.dtype).removeprefix('torch.')}"
        faults.append((key, fault or tensor_fault(value.to(own[key].dtype))))
    faults = sorted((key, fault) for key, fault in faults if fault)
    if faults:
        raise UserError(f"{source} holds weights that cannot be used:\n"
                        + "\n".join(listed_tensors("unusable", [f"{key} {fault}" for key, fault in faults])))
    for names in shared_names(own):
        names = [name for name in names if name in state]
        other = next((name for name in names if not torch.equal(state[name], state[names[0]])), None)
        if other is not None:
            keys = [f"{key}=False" for key, word in _SHARING.items() if word in other]
            same_layer = other.removeprefix("transformer.decoder.") == names[0].removeprefix("transformer.decoder.")
            raise UserError(f"{source} has different weights for {names[0]} and {other}, which are one in the model "
                            "that the config describes" + (f": set {keys[0]}" if keys and not same_layer else ""))


# Config keys that share heads, by the word in the heads' names.
_SHARING = {"dec_pred_bbox_embed_share": "bbox_embed", "dec_pred_class_embed_share": "class_embed"}


def compare_states(state: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names of tensors that are missing in `state`, unexpected in it, and of another shape (with both shapes)."""
    missing = [key for key in own if key not in state and not _DERIVED.search(key)]
    unexpected = [key for key in state if key not in own]
    mismatched = [f"{key} {shape_of(state[key])} {tuple(own[key].shape)}"
                  for key in own if key in state and shape_of(state[key]) != tuple(own[key].shape)]
    return missing, unexpected, mismatched


def shape_of(value: Tensor) -> tuple[int, ...]:
    """The shape; of a nested tensor, which has none, (-1,)."""
    return (-1,) if value.is_nested else tuple(value.shape)


def listed_tensors(kind: str, names: list[str], most: int = 5) -> list[str]:
    """Lines for an error message: how many tensors are of this kind, and the first names."""
    if not names:
        return []
    more = [f"... and {len(names) - most} more"] if len(names) > most else []
    return [f"  {len(names)} {kind}:", *(f"    {name}" for name in names[:most] + more)]


def _advice(mismatched: list[str], state: dict[str, Tensor]) -> str:
    if mismatched and all(CLASS_TENSORS.search(key) for key in mismatched):
        return ("\n  The number of classes differs: set num_classes to the checkpoint's, or start a training from it "
                "with --pretrain_model_path")
    if mismatched and all(QUERY_TENSORS.search(key) for key in mismatched):
        return (f"\n  The number of queries differs: set num_queries={len(state[mismatched[0]])} (with a one-to-many "
                "branch, that is the sum of num_queries and num_queries_one2many), or start a training from it with "
                "--pretrain_model_path")
    return "\n  Check -c and --options against the ones that the checkpoint was trained with"
