"""The eight lines of the README find what it says they find."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_of_the_readme_prints_what_the_readme_shows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", readme, re.DOTALL).groups()
    assert len(code.splitlines()) <= 8
    exec(compile(code, "README.md", "exec"), {})
    found = capsys.readouterr().out.splitlines()
    assert len(found) == len(shown.splitlines())
    for line, expected in zip(found, shown.splitlines()):
        (name, score, box), (wanted, wanted_score, wanted_box) = (x.split(maxsplit=2) for x in (line, expected))
        assert name == wanted
        assert float(score) == pytest.approx(float(wanted_score), abs=0.02)
        assert ast.literal_eval(box) == pytest.approx(ast.literal_eval(wanted_box), abs=2)
