from reports.recipe_plots import COLOURS, plot_recipes
from reports.recipes import compare
from tests.reports.pictures import count, opened
from tests.reports.test_recipes import run


def test_each_recipe_has_its_colour_left_and_right(tmp_path):
    results = compare({name: [run(seed, 0.1, base + 0.01 * seed) for seed in range(3)]
                       for name, base in (("base", 0.3), ("good", 0.4), ("bad", 0.2))})
    plot_recipes(results, tmp_path / "recipes.png")
    pixels = opened(tmp_path / "recipes.png")
    left, right = (pixels.crop((start * pixels.width // 2, 0, (start + 1) * pixels.width // 2, pixels.height))
                   for start in (0, 1))
    for colour in COLOURS[1:3]:
        assert count(left, colour) > 50 and count(right, colour) > 200
    assert count(right, COLOURS[0]) > 200


def test_recipes_without_a_finished_run_are_plotted_as_such(tmp_path):
    plot_recipes(compare({"base": [], "one": []}), tmp_path / "empty.png")
    plot_recipes(compare({"base": [run(0, 0.2)], "one": [run(0, 0.3)], "none": []}), tmp_path / "one.png")
    assert count(opened(tmp_path / "one.png"), COLOURS[1]) > 50 > count(opened(tmp_path / "empty.png"), COLOURS[1])
