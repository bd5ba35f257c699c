import json

import pytest

from tools import benchmark_predictor as tool


@pytest.mark.parametrize("source", ["weights", "config"])
def test_it_measures_a_predictor_without_its_detector(tiny_weights, tmp_path, source, monkeypatch):
    """Every round is a whole prediction of the JPEG, whatever the detector takes."""
    config, weights = tiny_weights
    sizes = []
    predict = tool.Predictor.__call__
    monkeypatch.setattr(tool.Predictor, "__call__", lambda self, path: sizes.append(predict(self, path).size))
    if source == "weights":
        monkeypatch.setattr(tool, "open_backend", lambda path: tool_backend(path, config))
        detector = str(weights)
    else:
        detector = str(config)
    tool.main(tool.parse_args([detector, "--sides", "90", "60", "--rounds", "2", "--json", str(tmp_path / "n.json"),
                               "--markdown", str(tmp_path / "t.md")]))
    assert sizes == [(90, 60)] * 5
    numbers = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    whole, reading = numbers["records"]
    assert 0 < reading["ms"] < whole["ms"] and numbers["input"][0] < numbers["input"][1]
    assert "reading and decoding" in (tmp_path / "t.md").read_text(encoding="utf-8")


def tool_backend(path, config):
    from inference.backends.torch_model import open_backend

    return open_backend(path, config=config)
