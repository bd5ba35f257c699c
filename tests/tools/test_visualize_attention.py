import runpy
import sys

import matplotlib.image
import pytest
import torch
from PIL import Image

from models import build_model
from models.attention_maps import Attended
from tools.visualize_attention import draw, main, parse_args, token_at
from util.config import Config
from util.errors import UserError


def view(*arguments):
    main(parse_args([*map(str, arguments)]))


@pytest.fixture
def save(tmp_path):
    """save(config): the arguments for a model of this config with random weights, and a picture."""
    def save(config):
        torch.manual_seed(0)
        Config(config).dump(tmp_path / "config.py")
        torch.save({"model": build_model(config)[0].state_dict(), "class_names": {i: f"thing {i}" for i in range(7)}},
                   tmp_path / "weights.pth")
        Image.new("RGB", (120, 80), "green").save(tmp_path / "green.png")
        return ["-c", tmp_path / "config.py", "--resume", tmp_path / "weights.pth", "--image", tmp_path / "green.png",
                "--output", tmp_path / "attention.png"]

    return save


@pytest.mark.parametrize("name, flags", [("sdetr_r50", []), ("sdetr_r50", ["--heads"]), ("lite_sdetr_r50", []),
                                         ("dino", [])])
def test_writes_a_picture(save, tiny_sdetr, tiny_config, tmp_path, capsys, name, flags):
    view(*save(tiny_config if name == "dino" else tiny_sdetr(name)), "--query", 3, *flags)
    assert capsys.readouterr().out.startswith("query 3: thing ")
    assert min(matplotlib.image.imread(tmp_path / "attention.png").shape[:2]) > 200


def test_the_best_query_and_mistakes(save, tiny_sdetr, tmp_path, capsys):
    arguments = save(tiny_sdetr("detr_r50", enc_layers=1, dec_layers=1, num_queries=3, num_select=3))
    scores = []
    for query in range(3):
        view(*arguments, "--query", query)
        scores.append(capsys.readouterr().out.split(";")[0])
    view(*arguments)
    best = max(scores, key=lambda text: text.split("score ")[1])
    assert capsys.readouterr().out.split("score ")[1][:4] == best.split("score ")[1]
    for flags, message in ((["--query", 3], "from 0 to 2"), (["--image", tmp_path / "nowhere.jpg"], "nowhere.jpg"),
                           (["--resume", "nowhere.pth"], "nowhere.pth"),
                           (["--output", tmp_path / "green.png"], "green.png would be written over the input"),
                           (["--output", tmp_path / "weights.pth"], "weights.pth: its name must end like that")):
        with pytest.raises(UserError, match=message):
            view(*arguments, *flags)
    assert Image.open(tmp_path / "green.png").getpixel((0, 0)) == (0, 128, 0)


def test_a_mistake_is_one_line(monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["visualize_attention.py", "-c", "x", "--resume", "nowhere.pth", "--image", "x"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path("tools/visualize_attention.py", run_name="__main__")
    assert end.value.code == 2 and [record.getMessage() for record in caplog.records] == [
        "no checkpoint file nowhere.pth"]


@pytest.mark.parametrize("box, row, column", [((0.1, 0.1), 0, 0), ((0.6, 0.9), 1, 1), ((1.0, 1.0), 1, 2)])
def test_token_in_the_centre_of_the_box(box, row, column):
    """Of a 2x3 map behind a finer one, of whose 24 tokens the layer updates 20."""
    layer = Attended("encoder", [(4, 6), (2, 3)], torch.zeros(26, 1, 30))
    index, centre = token_at(layer, torch.tensor([*box, 0.2, 0.2]))
    assert index == 20 + 3 * row + column
    assert centre == pytest.approx(((column + 0.5) / 3, (row + 0.5) / 2))


def test_panels():
    """A part a row, a layer a column; what is brightest is where the query looks."""
    weights = torch.zeros(1, 2, 4)
    weights[:, :, 3] = 1
    points = torch.full((4, 2, 1, 3, 2), 0.25)
    records = [Attended("a.encoder", [(2, 2)], torch.rand(4, 2, 1, 3), points),
               Attended("a.decoder", [(2, 2)], weights),
               Attended("a.decoder", [(2, 2)], weights)]
    box = torch.tensor([0.5, 0.5, 0.5, 0.5])
    for heads, titles in ((False, ["a.encoder, layer 1", "", "a.decoder, layer 1", "a.decoder, layer 2"]),
                          (True, ["a.encoder, layer 1, head 1", "a.encoder, layer 1, head 2",
                                  "a.decoder, layer 2, head 1", "a.decoder, layer 2, head 2"])):
        figure = draw(Image.new("RGB", (80, 60)), records, 0, box, "title", heads)
        assert [axes.get_title() for axes in figure.axes] == titles
        points, attention = figure.axes[0].collections[0], figure.axes[3].images[-1]
        assert points.get_offsets().tolist() == [[20, 15]] * (3 if heads else 6)
        assert attention.get_array().tolist() == [[0, 0], [0, 1]]
        rectangle = figure.axes[3].patches[-1]
        assert (*rectangle.get_xy(), rectangle.get_width(), rectangle.get_height()) == (20, 15, 40, 30)
