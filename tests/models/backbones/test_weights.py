import pytest
import torch

from models.backbones import weights
from models.backbones.weights import fetch_weights, load_backbone
from util.errors import UserError

URL = "https://example.org/models/net-1234.pth"


@pytest.fixture
def state():
    return {"conv.weight": torch.arange(3.0)}


def test_file(tmp_path, state):
    torch.save(state, tmp_path / "mine.pth")
    assert torch.equal(fetch_weights("net", URL, str(tmp_path / "mine.pth"))["conv.weight"], state["conv.weight"])


def test_folder_with_the_published_file(tmp_path, state):
    torch.save({"model": state}, tmp_path / "net-1234.pth")
    assert fetch_weights("net", URL, str(tmp_path)).keys() == state.keys()


@pytest.mark.parametrize("place", ["", "absent.pth", "no/folder"])
def test_missing_file(tmp_path, place):
    with pytest.raises(UserError, match=f"backbone_dir: no file {tmp_path}.*download {URL}"):
        fetch_weights("net", URL, str(tmp_path / place))


def test_download(monkeypatch, state):
    monkeypatch.setattr(weights, "read_checkpoint", {URL: {"model": state}}.__getitem__)
    assert fetch_weights("net", URL, None).keys() == state.keys()


def test_no_network(monkeypatch):
    def fail(source):
        raise UserError(f"cannot download {source}: no route")

    monkeypatch.setattr(weights, "read_checkpoint", fail)
    with pytest.raises(UserError) as error:
        fetch_weights("net", URL, None)
    for part in ("net", URL, "no route", "backbone_dir=FOLDER", "pretrained_backbone=False"):
        assert part in str(error.value)


@pytest.mark.parametrize("spoil", [lambda x: torch.full_like(x, torch.nan), lambda x: x.to(torch.complex64)])
def test_weights_that_are_no_numbers(spoil):
    body = torch.nn.Module()
    body.conv = torch.nn.Conv2d(3, 4, 1, bias=False)
    good = {"conv.weight": torch.ones(4, 3, 1, 1)}
    load_backbone(body, good, "x.pth")
    with pytest.raises(UserError, match="x.pth does not fit this backbone: it has 'conv.weight', which"):
        load_backbone(body, {"conv.weight": spoil(good["conv.weight"])}, "x.pth")
    assert torch.equal(body.conv.weight, good["conv.weight"])
