"""The lines of the README's example run, and find what the README shows."""
import ast
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT.parent / "shared/data/bccd/val2017"
LINE = re.compile(r"(WBC|RBC|Platelets) (0\.\d\d|1\.00) (\[.*\])")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The code, what it should print, and the name of the image."""
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", readme, re.DOTALL).groups()
    assert len(code.splitlines()) <= 8
    return code, shown.splitlines(), re.search(r'detector\("(.*?)"', code)[1]


def run(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    return capsys.readouterr().out.splitlines()


def test_the_example_runs_on_any_image(example, tmp_path, capsys):
    code, _, name = example
    Image.effect_noise((160, 120), 60).convert("RGB").save(tmp_path / name)
    found = run(code.replace("score=0.7", "score=0.0"), capsys)
    assert found and all(LINE.fullmatch(line) for line in found)


@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs the BCCD data")
def test_the_example_prints_what_the_readme_shows(example, tmp_path, capsys):
    code, shown, name = example
    shutil.copy(IMAGES / name, tmp_path)
    found = run(code, capsys)
    assert len(found) == len(shown)
    for line, expected in zip(found, shown):
        (label, score, box), (wanted, wanted_score, wanted_box) = (LINE.fullmatch(x).groups() for x in (line, expected))
        assert label == wanted
        assert float(score) == pytest.approx(float(wanted_score), abs=0.02)
        assert ast.literal_eval(box) == pytest.approx(ast.literal_eval(wanted_box), abs=2)
