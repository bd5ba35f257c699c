import json

import pytest

from tools import gpu_report


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(gpu_report, "installed", lambda name: name not in ("timm", "pycocotools", "ninja"))
    assert gpu_report.missing_packages() == ["timm", "pycocotools", "ninja"]


def test_names_of_requirements_are_read_without_versions(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_report, "installed", lambda name: asked.append(name) or True)
    assert gpu_report.missing_packages() == []
    assert {"torch", "pycocotools", "pytest", "setuptools"} <= set(asked)
    assert not any(set("<>=~! ") & set(name) for name in asked)


def test_installed_looks_at_this_python():
    assert gpu_report.installed("torch") and not gpu_report.installed("no-such-package-anywhere")


@pytest.mark.parametrize("result, code", [("PASS", 0), ("SKIP", 0), ("FAIL", 1)])
def test_report_has_steps_and_tables_in_order(result, code, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    (tmp_path / "check.json").write_text(json.dumps({"machine": {"name": "some GPU"}}))
    (parts / "steps.tsv").write_text(f"PASS\t12\tbuild\n{result}\t3\tmemcheck\n")
    (parts / "ops_float32.md").write_text("a table\n")
    assert gpu_report.main("report", tmp_path, parts) == code
    text = (tmp_path / "report.md").read_text()
    assert text.index("some GPU") < text.index("- PASS build (12 s)") < text.index(f"- {result} memcheck (3 s)")
    assert text.index("memcheck") < text.index("## ops, float32") < text.index("a table")
    assert json.loads((tmp_path / "check.json").read_text())["steps"][1] == {
        "result": result, "seconds": 3, "name": "memcheck"}
