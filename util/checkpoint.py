"""Reading and writing checkpoints. Files are opened with weights_only=True: they cannot run code."""
import argparse
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import safe_open
from torch import Tensor, nn

from util.errors import UserError
from util.files import atomic_write, cannot_write

logger = logging.getLogger(__name__)
torch.serialization.add_safe_globals([argparse.Namespace])  # released files hold their arguments

# Buffers that follow from the architecture, and training leftovers: neither loaded nor missed.
_DERIVED = re.compile(r"(relative_position_index|attn_mask|num_batches_tracked)$")
# First words of the published SDETR's names, stage 1 reading C5 and stage 2 C4; ours go by stage and by level.
_PUBLISHED_SDETR = {"mytransformer1": "stages.0", "query_embed1": "query_embed.0", "input_proj1": "input_proj.1",
                    "mytransformer2": "stages.1", "query_embed2": "query_embed.1", "input_proj2": "input_proj.0"}
# Tensors with one row per class. Only in these may a checkpoint's shapes differ from the model's.
CLASS_TENSORS = re.compile(r"(class_embed(\.\d+)?\.(weight|bias)|label_enc\.weight)$")


def read_checkpoint(source: str | os.PathLike) -> dict[str, Any]:
    """The dict in a .pth file, a .safetensors file (as {"model": ...}, with "class_names" where it has them), or behind
    an https URL.

    Raises UserError for a missing or unreadable file.
    """
    source = str(source)
    path = _download(source) if source.startswith("https://") else Path(source)
    if not path.is_file():
        raise UserError(f"no checkpoint file {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's own text recommends loading it unsafely
        raise UserError(f"{path} is not a checkpoint that can be read safely: it was not written by torch.save, is "
                        "damaged, or holds more than tensors and plain values") from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        content = {"model": {name: file.get_tensor(name) for name in file.keys()}}
        names = (file.metadata() or {}).get("class_names")  # tools/export_weights.py puts them there
    if names is not None:
        content["class_names"] = {int(i): name for i, name in json.loads(names).items()}
    return content


def _download(url: str) -> Path:
    """Path of the file behind an address, in torch's cache; downloads it if it is not there."""
    name = Path(urlparse(url).path).name
    if not re.search(r"-[0-9a-f]{8}", name):  # names with a hash, as torchvision's, identify the file
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        logger.info("%s: using the downloaded %s", url, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:  # urllib's errors are OSErrors
        raise UserError(f"cannot download {url}: {error}") from error
    return path


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


def model_state(checkpoint: dict[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """The weights inside a checkpoint: a bare state dict, or its entry "model" (with `ema` "ema_model", if present)."""
    for name in (("ema_model", "model") if ema else ("model",)):
        if isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
            break
    state = {key.removeprefix("module."): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"the checkpoint holds no weights; its entries are {sorted(checkpoint)[:10]}")
    return state


def load_weights(model: nn.Module, checkpoint: str | os.PathLike | dict[str, Any], strict: bool = True,
                 ema: bool = False) -> None:
    """Loads released or own weights into a model; only here are published layouts mapped to ours.

    Raises UserError with the missing, unexpected and mismatched tensors. With strict=False, missing and unexpected
    ones are logged instead.
    """
    name = "the checkpoint" if isinstance(checkpoint, dict) else str(checkpoint)
    content = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint)
    own = model.state_dict()
    state = to_our_layout(model_state(content, ema), own)
    missing, unexpected, mismatched = compare_states(state, own)
    problems = listed_tensors("missing", missing) + listed_tensors("unexpected", unexpected)
    other_classes = bool(mismatched) and all(CLASS_TENSORS.search(line.split()[0]) for line in mismatched)
    if mismatched or (strict and problems):
        problems += listed_tensors("of another shape (checkpoint, model)", mismatched)
        raise UserError(f"{name} does not fit the model that the config describes:\n" + "\n".join(problems)
                        + _advice(other_classes))
    for line in problems:
        logger.warning("%s: %s", name, line)
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def to_our_layout(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's state dict under the names of `own`, the model's, without what a model never loads."""
    if "backbone.0.patch_embed.proj.weight" in own:  # H-DETR keeps its Swin one level deeper
        state = {key.replace("backbone.0.body.", "backbone.0."): value for key, value in state.items()}
    return {our_name(key): value for key, value in state.items()
            if not (_DERIVED.search(key) or _is_unused(key, own))}


def our_name(key: str) -> str:
    """This project's name of a published parameter."""
    part, dot, rest = key.partition(".")
    return _PUBLISHED_SDETR.get(part, part) + dot + rest


def _is_unused(key: str, own: dict[str, Tensor]) -> bool:
    """The published plain deformable attention carries a query_proj that it never uses."""
    prefix, found, _ = key.partition("query_proj.")
    return bool(found) and key not in own and f"{prefix}attention_weights.weight" in own


def compare_states(state: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names of tensors that are missing in `state`, unexpected in it, and of another shape (with both shapes)."""
    missing = [key for key in own if key not in state and not _DERIVED.search(key)]
    unexpected = [key for key in state if key not in own]
    mismatched = [f"{key} {tuple(state[key].shape)} {tuple(own[key].shape)}"
                  for key in own if key in state and state[key].shape != own[key].shape]
    return missing, unexpected, mismatched


def listed_tensors(kind: str, names: list[str], most: int = 5) -> list[str]:
    """Lines for an error message: how many tensors are of this kind, and the first names."""
    if not names:
        return []
    more = [f"... and {len(names) - most} more"] if len(names) > most else []
    return [f"  {len(names)} {kind}:", *(f"    {name}" for name in names[:most] + more)]


def _advice(other_classes: bool) -> str:
    if other_classes:
        return ("\n  The number of classes differs: set num_classes to the checkpoint's, or start a training from it "
                "with --pretrain_model_path")
    return "\n  Check -c and --options against the ones that the checkpoint was trained with"
