"""Markdown that is legible as text."""
import math


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is legible as text: text left, numbers right, as the first row has them."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows)]
    numeric = [cell == "-" or cell.replace(".", "", 1).isdigit() for cell in rows[0]]
    lines = [[c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric)] for cells in [columns, *rows]]
    lines.insert(1, ["-" * (w - 1) + ":" if n else "-" * w for w, n in zip(widths, numeric)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(x: float | None) -> str:
    """Three digits that count."""
    if x is None:
        return "-"
    return f"{x:.{max(0, 2 - math.floor(math.log10(x)))}f}" if 0 < x < 100 else f"{x:.0f}"
