from util.integers import ceil_div, round_up


def test_ceil_div():
    assert [ceil_div(a, 4) for a in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_round_up():
    assert [round_up(x, 32) for x in (0, 1, 32, 33)] == [0, 32, 32, 64]
