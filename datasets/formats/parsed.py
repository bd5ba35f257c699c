"""What a layout's reader returns, and what all of them do with it."""
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.annotations import DERIVED, WARNED, Problem
from datasets.boxes import cut, doubt, faults, reaching_over
from datasets.table import Array, Table
from util.class_names import ClassNames, comparable
from util.errors import UserError

Note = tuple[int, str]  # logging's level, and what the log says
ADVICE = "tools/inspect_dataset.py lists what is wrong, and its --fix writes a corrected copy"


@dataclass(frozen=True)
class Parsed:
    """A split as it is written: boxes are not cut, and problems not judged.

    derived: by kind in DERIVED, how many values that no problem stands for. problems: of the kinds in DERIVED and
    WARNED, and those that stop a training.
    notes: what else the log says.
    """

    table: Table
    derived: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def usable(parsed: Parsed, source: Path, title: str) -> tuple[Table, list[Note]]:
    """The table that training and evaluation use, and what the log says of it.

    Boxes are cut at the border of their image, with their areas; those that are empty, outside or not finite are
    dropped. Raises UserError for the first problem that stops a training. source: what was read; title: of the split.
    """
    kinds = Counter(problem.kind for problem in parsed.problems)
    stops = [problem for problem in parsed.problems if problem.kind not in {*WARNED, *DERIVED}]
    if stops:
        more = f" (and {len(stops) - 1} more)" if len(stops) > 1 else ""
        raise UserError(f"{source}: {stops[0].text}{more}. {ADVICE}")
    notes = list(parsed.notes)
    derived = parsed.derived + Counter({kind: count for kind, count in kinds.items() if kind in DERIVED})
    if derived:
        found = "; ".join(f"{count} {DERIVED[kind]}" for kind, count in derived.items())
        notes.append((logging.INFO, f"derived {found}"))
    for kind in sorted(kinds.keys() & WARNED.keys()):
        first = next(problem for problem in parsed.problems if problem.kind == kind)
        notes.append((logging.WARNING, f"{kinds[kind]} {WARNED[kind]}, such as {first.text}"))
    notes += [(logging.WARNING, text) for text in alike(parsed.table.names)]
    table, sizes = parsed.table, parsed.table.sizes[parsed.table.images_of_boxes()]
    if seems := doubt(table.boxes, sizes):
        notes.append((logging.WARNING, seems))
    if repeated := int(repeating(table).sum()):
        notes.append((logging.INFO, f"{repeated} boxes repeat one of the same class in their image, and count too"))
    useless = np.any(list(faults(table.boxes, sizes).values()), 0)
    example = _first(table, useless)
    table, sizes = table.keep_boxes(~useless), sizes[~useless]
    if over := int(reaching_over(table.boxes, sizes).sum()):
        notes.append((logging.INFO, f"{over} boxes extend beyond their image: cut at its border, for training and "
                                    "evaluation alike"))
    if useless.any():
        notes.append((logging.WARNING, f"dropped {int(useless.sum())} boxes that are empty, outside their image or not "
                                       f"finite, such as {example}"))
    boxes, areas = cut(table.boxes, table.areas, sizes)
    return replace(table, boxes=boxes, areas=areas), [(level, f"{title}: {text}") for level, text in notes]


def alike(names: ClassNames) -> list[str]:
    """What the log says of classes whose names hardly differ."""
    groups = defaultdict(list)
    for i, name in names.items():
        groups[comparable(name)].append(f"{name!r} (id {i})")
    return [f"the names of the classes {' and '.join(group)} differ in case, spaces, hyphens, underscores or not at "
            "all: if they are one class, they need one name" for group in groups.values() if len(group) > 1]


def repeating(table: Table) -> Array:
    """Which boxes [m] repeat another of the same class in the same image, all but one of each."""
    columns = [table.images_of_boxes(), table.labels, table.crowds, *table.boxes.T]
    order = np.lexsort(columns)
    found = np.zeros(len(order), bool)
    found[order[1:]] = np.all([column[order[1:]] == column[order[:-1]] for column in columns], 0)
    return found


def _first(table: Table, chosen: Array) -> str:
    """The first of the chosen boxes [m], and the file name of its image."""
    if not chosen.any():
        return ""
    index = int(chosen.argmax())
    image = int(np.searchsorted(table.starts, index, side="right")) - 1
    return f"{table.boxes[index].round(3).tolist()} in {table.file_names[image]}"
