import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path("tools").resolve()
# Modules that are no programs, or only a part of one.
SHARED = {"__init__", "data_loading", "data_probe", "detector_keys", "common", "measuring", "peers", "recipe_file",
          "recipe_runs", "sampling_form", "soak_files", "soak_machine", "soak_runs", "soaking", "training_parts",
          "training_steps"}

HELP = """
import os, runpy, sys  # and, once for all tools, what takes most of the time
import matplotlib.figure, pycocotools.coco, scipy.optimize, torch.utils.tensorboard, torchvision
sys.path[0], *tools = sys.argv[1:]
for path in tools:
    child = os.fork()
    if child == 0:
        sys.argv = [path, "--help"]
        runpy.run_path(path, run_name="__main__")
    print(path, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("pattern", ["de*.py", pytest.param("*.py", marks=pytest.mark.slow)])
def test_every_tool_has_a_help_from_any_folder(tmp_path, pattern):
    tools = [path for path in sorted(TOOLS.glob(pattern)) if path.stem not in SHARED]
    done = subprocess.run([sys.executable, "-c", HELP, TOOLS, *tools], capture_output=True, text=True,
                          cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    for path in tools:
        assert f"usage: {path.name}" in done.stdout and f"{path} 0\n" in done.stdout
    assert not list(tmp_path.iterdir())



def test_every_tool_ends_as_main_does():
    """By run_tool, and it writes no file in place: util.files has the functions."""
    for path in TOOLS.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.stem not in SHARED:
            assert "    run_tool(" in source.split('if __name__ == "__main__":')[1], path
            assert not re.search(r"\.(write_text|savefig)\(", source), path
