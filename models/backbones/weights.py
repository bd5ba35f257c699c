"""Where ImageNet weights come from."""
from pathlib import Path

from torch import Tensor

from util.checkpoint import model_state, read_checkpoint
from util.errors import UserError


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
