"""The output folder of a run."""
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from util.config import Config, load_config
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
    """Saves what the results were made with: config.py (runs again with -c) and run.json. Raises UserError if that
    would replace a config that somebody wrote by hand: it has comments and bases that the full one has not."""
    source, target = arguments.get("config_file"), folder / "config.py"
    if source and target.is_file() and Path(source).is_file() and target.samefile(source):
        if load_config(target).text() != target.read_text(encoding="utf-8"):
            raise UserError(f"the run's full config would be written over {source}: give that another name, or choose "
                            "another --output_dir")
    Config(options.to_dict()).dump(target)
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
