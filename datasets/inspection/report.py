"""The text of tools/inspect_dataset.py: Markdown that is legible as text. `found` is the content of report.json."""
import math
from datetime import timedelta

from datasets.inspection.split import BOTH
from datasets.inspection.statistics import shortened_list
from util.markdown import table

TIGHT = 0.8  # share of the memory above which the report lists what saves memory


def heading(found: dict) -> str:
    size, max_size = found["splits"]["train"]["seen"]["eval_size"]
    source = f"Sizes of {found['config']}" if found["config"] else "Usual sizes (-c CONFIG for others)"
    return f"# {found['data']}\n\n{source}: in evaluation {size} px the shorter side and at most {max_size} the longer."


def overview(described: dict[str, dict]) -> str:
    def row(name: str, cell) -> list[str]:
        return [name, *(cell(described[split]) for split in BOTH)]

    size = described["train"]["seen"]["eval_size"][0]
    least = described["train"]["seen"]["least"]
    smallest = described["train"]["seen"]["smallest_train_size"]
    rows = [row(name.replace("_", " "), lambda d, name=name: str(d[name]))
            for name in ("images", "images_without_boxes", "boxes", "crowds")]
    rows += [row(label, lambda d, name=name: _spread(d[name])) for name, label in (
        ("boxes_an_image", "boxes per image"), ("width", "image width, px"), ("height", "image height, px"),
        ("aspect_ratio", "width / height"))]
    rows += [row("most frequent sizes",
                 lambda d: shortened_list([f"{w}x{h} ({count})" for w, h, count in d["sizes"]], 3)),
             row(f"root of the box area at size {size}, px", lambda d: _spread(d["seen"]["length"])),
             row(f"shorter box side at size {size}, px", lambda d: _spread(d["seen"]["shorter_side"])),
             row(f"boxes with a side below {least:g} px at size {size}, {smallest}",
                 lambda d: f"{d['seen']['below_least']}, {d['seen']['below_least_at_smallest']}")]
    return "## Images and boxes\n\nRanges are smallest, median, largest.\n\n" + table(["", *BOTH], rows)


def _spread(values: list[float]) -> str:
    return " / ".join(f"{value:.4g}" for value in values)


def classes(described: dict[str, dict]) -> str:
    """Classes with boxes, most frequent first; those without are named below."""
    names = list(dict.fromkeys(name for split in BOTH for name in described[split]["classes"]))
    none = dict.fromkeys(("boxes", "images", "small", "medium", "large"), 0)
    rows = {name: [described[split]["classes"].get(name, none) for split in BOTH] for name in names}
    used = sorted((name for name in names if any(row["boxes"] for row in rows[name])),
                  key=lambda name: -rows[name][0]["boxes"])
    text = "## Classes\n\nBoxes, images with boxes, and boxes by COCO size: area below 32x32 px, below 96x96 px, above."
    if used:
        columns = ["id and class", *(f"{split} {key}" for split in BOTH for key in none)]
        text += "\n\n" + table(columns, [[name, *(str(row[key]) for row in rows[name] for key in none)]
                                         for name in used])
    unused = [name for name in names if name not in used]
    return text + (f"\n\nWithout any box: {shortened_list(unused, 20)}." if unused else "")


def listed_problems(found: dict) -> str:
    lines = []
    for split, kinds in found["problems"].items():
        for row in kinds.values():
            notes = [note for note in ("**stops a training**" if row["stops"] else None,
                                       f"--fix: {row['remedy']}" if row["remedy"] else None) if note]
            lines.append(f"- {split}: {row['count']} {row['meaning']}" + (f" ({'; '.join(notes)})" if notes else ""))
            lines += [f"  - {example}" for example in row["examples"]]
            if row["count"] > len(row["examples"]):
                lines.append(f"  - and {row['count'] - len(row['examples'])} more")
    text = "## Problems\n\n" + ("\n".join(lines) or "None.")
    return text + "\n\n## Warnings\n\n" + ("\n".join(f"- {line}" for line in found["warnings"]) or "None.")


def verdict(stops: list[str]) -> str:
    if not stops:
        return "## Verdict\n\nA training can use this data."
    return "## Verdict\n\nA training would stop:\n\n" + "\n".join(f"- {reason}" for reason in stops)


def listed_cost(cost: dict) -> str:
    limit, peak = cost["limit_bytes"], cost["peak_bytes"]
    height, width = cost["worst_shape"]
    text = (f"## A training step\n\nBatches of {cost['batch_size']} on {cost['device']}, {cost['precision']}. The "
            f"largest has {height}x{width} px (height x width) and {cost['most_boxes']} boxes per image.\n")
    memory = "more than there is" if peak is None else f"{peak / 2**30:.1f} GiB"
    estimated = "" if cost["seconds"] else ", estimated, so no step was timed"
    lines = [f"- peak memory: {memory} of {limit / 2**30:.1f} GiB{estimated}"]
    if cost["seconds"]:
        lines += [f"- a step: {cost['seconds']:.3g} s (median); the largest batch {cost['worst_seconds']:.3g} s",
                  f"- loading a batch: {cost['loading_seconds']:.3g} s in one process; --num_workers "
                  f"{math.ceil(cost['loading_seconds'] / cost['seconds'])} or more keep up",
                  f"- an epoch: {_duration(cost['epoch_seconds'])}; {cost['epochs']} epochs: "
                  f"{_duration(cost['training_seconds'])} without evaluations, in which every image is seen "
                  f"{cost['passes']:.3g} times"]
    if peak is None or peak > TIGHT * limit:
        lines.append(f"- memory is {'tight' if peak and peak <= limit else 'short'}; what helps, the cheapest first:")
        lines += [f"  - {lever}" for lever in cost['levers']]
    return text + "\n" + "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds))) + " h"
