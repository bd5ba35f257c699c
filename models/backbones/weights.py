"""Where ImageNet weights come from."""
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

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
        return read_weights(path)
    try:
        state = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (URLError, OSError) as error:
        raise UserError(f"cannot download the ImageNet weights of {name} from {url} ({error}). Download the file "
                        "elsewhere and set backbone_dir=FOLDER, or set pretrained_backbone=False") from error
    return _unwrap(state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dict in a local .pth or .safetensors file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file
        return load_file(path)
    return _unwrap(torch.load(path, map_location="cpu", weights_only=True))


def _unwrap(state: dict) -> dict[str, Tensor]:
    return next((state[key] for key in ("model", "state_dict") if key in state), state)
