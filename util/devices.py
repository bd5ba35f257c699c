"""Where a program computes."""
import torch

from util.errors import UserError


def usable_device(name: str | torch.device) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N". Raises UserError for any other name and for a GPU that is not there."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"--device {name!r}: pass cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: pass cpu, cuda or cuda:N; other kinds of device are not supported")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(f"--device {name}: this machine has {count} GPUs, cuda:0 to cuda:{count - 1}")
    return device
