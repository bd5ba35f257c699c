import json
import time

import pytest

from models.ops import openvino_nodes
from tools import benchmark_deployment as tool
from util.errors import UserError


def test_ratios_are_those_of_each_round():
    """A machine that becomes slower in the second round changes none."""
    seconds = {"PyTorch": [0.4, 4.0], "float32": [0.2, 2.0], "int8": [0.1, 1.0]}
    first, second, third = tool.summarise(seconds, {"int8": 12.5})
    assert (first["to_first"], second["to_first"], third["to_first"]) == pytest.approx((1, 2, 4))
    assert third["to_previous"] == pytest.approx(2) and second["ms_best"] == pytest.approx(200)
    text = tool.report([first, second, third], 2)
    assert "| int8 " in text and "12.5" in text and "2 rounds" in text


def test_a_config_that_is_missing_is_named():
    with pytest.raises(UserError, match="Did you mean"):
        tool.main(tool.parse_args(["config/LiteDINO/r50_h3l1_2p1x4.py"]))


@pytest.mark.slow
@pytest.mark.skipif(not openvino_nodes.available(), reason=f"not built: {openvino_nodes.BUILD_COMMAND}")
def test_a_whole_run(tiny_dino, tmp_path):
    for package in ("openvino", "onnxscript"):
        pytest.importorskip(package)
    config = tmp_path / "tiny.py"
    tiny_dino(return_interm_indices=[1], num_feature_levels=2).dump(config)
    arguments = ["--size", "64", "96", "--rounds", "2", "--dtype", "float32", "--folder", str(tmp_path / "files"),
                 "--json", str(tmp_path / "n.json"), "--markdown", str(tmp_path / "t.md")]
    begin = time.time()
    assert tool.main(tool.parse_args([str(config), *arguments])) == 0
    numbers = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    assert [record["name"] for record in numbers["records"]] == ["PyTorch float32", "OpenVINO float32"]
    assert all(0 < record["ms"] < 1e3 * (time.time() - begin) for record in numbers["records"])
    assert "OpenVINO float32" in (tmp_path / "t.md").read_text(encoding="utf-8")
    assert (tmp_path / "files/float32.bin").exists()
