import json

import pytest
import torch
from PIL import Image
from torch import nn

from models.ops import openvino_nodes
from tools import benchmark_peers as tool
from tools.peers import Contender


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images):
        return self.layer(images.mean((2, 3))[:, None])


def contender(name, **changes):
    return Contender(name, changes.pop("ap", None), "nobody", changes.pop("build", Linear), **changes)



def test_a_table_for_each_setting_and_what_could_not_be_measured():
    contenders = [contender("first"), contender("second", ap=53.1), contender("coarse", multiple=32)]
    threads = torch.get_num_threads()
    try:
        records = tool.measure(contenders, ["eager"], (48, 64), 1, rounds=2)
    finally:
        torch.set_num_threads(threads)
    assert [("ms" in record, "why" in record) for record in records] == [(True, False), (True, False), (False, True)]
    records[0]["ms_best"], records[1]["ms_best"] = 10.0, 25.0
    text = tool.report(records, ["eager"], 2)
    assert "### 48x64 px, 1 thread\n" in text and "multiples of 32" in text
    row = next(line for line in text.splitlines() if line.startswith("| second"))
    assert [cell.strip() for cell in row.split("|")][2:-1] == ["53.1", "25.0", "2.50"]


def test_a_form_that_fails_is_said_and_the_others_are_measured(monkeypatch):
    def fails(module, images):
        raise RuntimeError("no operator grid_sampler\nat line 7")

    monkeypatch.setitem(tool.RUNNERS, "compiled", fails)
    records = tool.measure([contender("first")], ["eager", "compiled"], (32, 32), torch.get_num_threads(), rounds=1)
    assert records[0]["ms"] > 0 and records[1]["why"] == "no operator grid_sampler"


def test_the_picture_shows_every_setting(tmp_path):
    records = [{"name": name, "form": "eager", "size": size, "threads": 1, "ms_best": 5.0}
               for name in "ab" for size in ([64, 64], [64, 96])]
    tool.plot(records, ["eager"], tmp_path / "peers.png")
    with Image.open(tmp_path / "peers.png") as picture:
        assert picture.width > 1000


@pytest.mark.slow
@pytest.mark.skipif(not openvino_nodes.available(), reason=f"not built: {openvino_nodes.BUILD_COMMAND}")
def test_a_whole_run(tmp_path, tiny_dino, monkeypatch):
    for package in ("openvino", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from models import build_model
    from tools.peers import Own

    def build():
        return Own(build_model(tiny_dino(return_interm_indices=[1], num_feature_levels=2))[0])

    monkeypatch.setattr(tool, "chosen", lambda names: [contender("tiny", build=build)])
    arguments = ["--size", "64", "96", "--threads", str(torch.get_num_threads()), "--rounds", "1",
                 "--forms", "eager", "onnxruntime", "openvino", "--json", str(tmp_path / "n.json"),
                 "--markdown", str(tmp_path / "t.md"), "--plot", str(tmp_path / "p.png")]
    assert tool.main(tool.parse_args(arguments)) == 0
    records = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))["records"]
    assert [record["form"] for record in records] == ["eager", "onnxruntime", "openvino"]
    assert all(record.get("ms", 0) > 0 for record in records), records
    assert "OpenVINO, ms" in (tmp_path / "t.md").read_text(encoding="utf-8") and (tmp_path / "p.png").exists()
