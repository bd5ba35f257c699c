"""Finding and loading ImageNet weights."""
from pathlib import Path

from torch import Tensor, nn

from util.checkpoint import model_state, read_checkpoint
from util.errors import UserError
from util.saved_state import tensor_fault


def fetch_weights(name: str, url: str, backbone_dir: str | None) -> dict[str, Tensor]:
    """State dict of a backbone: from `backbone_dir` (a file, or a folder that holds the url's file), else downloaded.

    Raises UserError if the local file is missing or there is no network.
    """
    if backbone_dir:
        path = Path(backbone_dir)
        path = path / Path(url).name if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"backbone_dir: no file {path}; download {url} to it, or set pretrained_backbone=False")
        return model_state(read_checkpoint(path))
    try:
        return model_state(read_checkpoint(url))
    except UserError as error:
        raise UserError(f"ImageNet weights of {name}: {error}. Download the file elsewhere and set "
                        "backbone_dir=FOLDER, or set pretrained_backbone=False") from error


def load_backbone(body: nn.Module, weights: dict[str, Tensor], source: str, fresh: tuple[str, ...] = ()) -> None:
    """Loads weights that must fit, except for tensors whose name starts with a word of `fresh`: those keep their
    initial values.

    Raises UserError that names `source` and a missing, unknown or misshapen tensor.
    """
    derived = ("num_batches_tracked", "relative_position_index")
    own = body.state_dict()
    problems = [f"lacks {key!r}" for key in own
                if key not in weights and not any(key.startswith(word) for word in fresh) and not key.endswith(derived)]
    problems += [f"has {key!r}, which the backbone lacks" for key in weights
                 if key not in own and not key.endswith(derived)]
    problems += [f"has another shape of {key!r}" for key in own
                 if key in weights and weights[key].shape != own[key].shape]
    problems += [f"has {key!r}, which {fault}" for key in own
                 if key in weights and (fault := tensor_fault(weights[key]))]
    if problems:
        raise UserError(f"{source} does not fit this backbone: it {problems[0]} ({len(problems)} such tensors)")
    body.load_state_dict({key: weights[key] for key in own if key in weights}, strict=False)
