"""Integer division and multiples, rounded up."""


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def round_up(x: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least x."""
    return ceil_div(x, multiple) * multiple
