"""The output folder of a run."""
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from util.config import Config
from util.errors import UserError
from util.files import write_text
from util.options import Options


def prepare_folder(folder: Path) -> None:
    """Creates the folder. Raises UserError if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise UserError(f"cannot write to the output folder {folder}: {error.strerror}. Choose another --output_dir"
                        ) from error


def require_space(folder: Path, checkpoint_bytes: int, checkpoints: int) -> None:
    """Raises UserError unless that many checkpoints fit."""
    free = shutil.disk_usage(folder).free
    if free < checkpoints * checkpoint_bytes:
        raise UserError(f"the disk of {folder} has {free / 2**20:.0f} MB left; {checkpoints} checkpoints take about "
                        f"{checkpoints * checkpoint_bytes / 2**20:.0f} MB. Choose another --output_dir, or write fewer "
                        "with a larger save_checkpoint_interval")


def record_run(folder: Path, options: Options, arguments: Mapping[str, Any]) -> None:
    """Saves what the results were made with: config.py (runs again with -c) and run.json."""
    Config(options.to_dict()).dump(folder / "config.py")
    record = {"arguments": dict(arguments), "git": git_hash(), "torch": torch.__version__}
    write_text(folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")


def git_hash() -> str:
    """The program's commit, with "-dirty" for uncommitted changes, or "unknown"."""
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True,
                                   text=True, cwd=Path(__file__).parent, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"
