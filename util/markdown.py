"""Markdown that is legible as text."""
import math


def table(columns: list[str], rows: list[list[str]], sides: str | None = None) -> str:
    """A Markdown table whose columns line up as text too. Cells hold any text: `|` is escaped, a line break is a space.

    sides: "l" or "r" for each column; by default a column is right-aligned if its first row holds a number or "-".
    """
    cells = [[_escaped(cell) for cell in line] for line in [columns, *rows]]
    if sides is None:
        sides = "".join("r" if _is_number(cell) else "l" for cell in (rows[0] if rows else columns))
    widths = [max(3, *map(len, column)) for column in zip(*cells)]
    lines = [[cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in zip(line, widths, sides)]
             for line in cells]
    lines.insert(1, ["-" * (width - 1) + ":" if side == "r" else "-" * width for width, side in zip(widths, sides)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def three_digits(x: float | None) -> str:
    """A number >= 0 with three significant digits, or all digits before the point; "-" for None."""
    if x is None:
        return "-"
    return f"{x:.{max(0, 2 - math.floor(math.log10(x)))}f}" if 0 < x < 100 else f"{x:.0f}"


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).isdigit()


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("\\|", "|").replace("|", "\\|").splitlines())
