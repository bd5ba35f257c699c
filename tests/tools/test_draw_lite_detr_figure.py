from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tools.draw_lite_detr_figure import draw, draw_data_flow, token_shares

ROOT = Path(__file__).resolve().parents[2]


def test_the_shares_of_the_tokens_are_those_of_the_maps():
    """At 800x1066: 100x134, 50x67, 25x34 and 13x17 tokens."""
    assert [round(share * 17821) for share in token_shares().values()] == [13400, 3350, 850, 221]


@pytest.mark.parametrize("paint, expected", [
    (draw, {"layer 1", "layer 6", "block 3", "stride 8\n75 % of tokens", "query q", "keys k", "values v"}),
    (draw_data_flow, {"backbone", "encoder", "FlatFeatures", "Queries", "DecoderOutput", "outputs", "losses"})])
def test_no_text_lies_over_another_or_outside(paint, expected):
    figure = paint()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    assert expected <= {text.get_text() for text in texts}
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    for (one, box), (two, other) in combinations(zip(texts, boxes), 2):
        assert not box.overlaps(other), (one.get_text(), two.get_text())
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_the_files_of_the_data_flow_exist():
    named = {text.get_text() for text in draw_data_flow().axes[0].texts if text.get_text().startswith("models/")}
    assert len(named) == 8 and all((ROOT / name).exists() for name in named)
