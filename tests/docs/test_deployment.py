"""The Python example of docs/deployment.md runs without torch and finds what PyTorch finds."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
# What the example may not need: this project and its other packages.
FORBIDDEN = ("torch", "torchvision", "models", "inference", "datasets", "util")


def example():
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(# detect\.py\n.*?)```", text, re.DOTALL)[1]


def test_the_example_is_short():
    assert len([line for line in example().splitlines() if line.strip()]) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"sampler": "gather"}, {"uint8": True}, {"size": None, "batch": None}],
                         ids=["fixed size", "bytes", "any size"])
def test_the_example_finds_what_pytorch_finds(exported, tiny_backend, tmp_path, changes):
    pytest.importorskip("onnxruntime")
    path = exported("onnx", **changes)
    image = Image.effect_noise((160, 120), 60).convert("RGB")
    image.save(tmp_path / "image.png")
    (tmp_path / "detect.py").write_text(example().replace("0.3", "0"), encoding="utf-8")
    for name in FORBIDDEN:  # beside the script, and so before the packages that are installed
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not for deployment')", encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "detect.py", path, tmp_path / "image.png"], capture_output=True,
                          text=True, timeout=120, cwd=tmp_path, env={})
    assert done.returncode == 0, done.stderr
    wanted = Predictor(path)(image, score=0)
    assert len(done.stdout.splitlines()) == len(wanted) > 0
    for line, found in zip(done.stdout.splitlines(), wanted):
        name, score, *box = line.rsplit(maxsplit=5)
        assert name == found.name and float(score) == pytest.approx(found.score, abs=1e-3)
        assert [float(x) for x in box] == pytest.approx(found.box, abs=0.1)
