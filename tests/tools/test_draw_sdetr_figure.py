from tools.draw_sdetr_figure import draw


def test_the_figure_shows_both_stages_and_the_four_grids(tmp_path):
    figure = draw()
    stages, grid = ({text.get_text() for text in axes.texts} for axes in figure.axes)
    assert {"C5, stride 32", "C4, stride 16", "encoder 1\n8 heads", "encoder 2\n1 head", "content"} <= stages
    assert {"Q", "K", "A", "V"} <= grid
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
