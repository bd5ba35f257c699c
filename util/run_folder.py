"""The output folder of a run."""
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from util.checkpoint import UNFINISHED
from util.config import Config
from util.errors import UserError


def prepare_folder(folder: Path) -> None:
    """Makes the folder, and clears it of what a run that was killed left half written. Raises UserError if files
    cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(UNFINISHED):
            left.unlink(missing_ok=True)
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


def record_run(folder: Path, config: Config, arguments: dict) -> None:
    """Saves what made the results: config.py (runs again with -c) and run.json."""
    config.dump(folder / "config.py")
    record = {"arguments": arguments, "git": git_hash(), "torch": torch.__version__}
    (folder / "run.json").write_text(json.dumps(record, indent=1, default=str) + "\n")


def git_hash() -> str:
    """Commit of the program, with "-dirty" for uncommitted changes, or "unknown"."""
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True,
                                   text=True, cwd=Path(__file__).parent, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"
