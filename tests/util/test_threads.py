import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def spin_count(**environment):
    """GOMP_SPINCOUNT as torch's OpenMP has it in a program that imports main."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", "import main"], cwd=ROOT, text=True, capture_output=True, check=True,
                          timeout=120, env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | environment)
    found = [line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not found:
        pytest.skip("torch's OpenMP is not GNU's")
    return found[0]


def test_threads_of_a_training_soon_sleep_unless_the_environment_says_otherwise():
    assert spin_count() == "10000"
    assert spin_count(GOMP_SPINCOUNT="77") == "77"
    assert spin_count(OMP_WAIT_POLICY="active") not in ("10000", "77")


def test_main_imports_it_before_torch():
    imports = [node for node in ast.parse((ROOT / "main.py").read_text(encoding="utf-8")).body
               if isinstance(node, ast.Import | ast.ImportFrom)]
    assert isinstance(imports[0], ast.Import) and imports[0].names[0].name == "util.threads"
