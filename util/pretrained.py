"""Fine-tuning from a model that was trained on other classes, or with another number of queries."""
import logging
import os
from collections import Counter

from torch import Tensor, nn

from util.checkpoint import (
    CLASS_TENSORS,
    QUERY_TENSORS,
    check_numbers,
    compare_states,
    listed_tensors,
    model_state,
    read_checkpoint,
    shape_of,
    to_our_layout,
)
from util.class_names import COCO_CLASSES, shared_ids
from util.errors import UserError

logger = logging.getLogger(__name__)
FURTHER_HEADS = "one_to_many."  # of models.one_to_many, which no detection uses


def load_pretrained(model: nn.Module, source: str | os.PathLike, ignore: list[str] | None = None,
                    class_names: dict[int, str] | None = None, no_object: bool = False) -> list[str]:
    """Loads another model's weights for a new training. Returns the names of the tensors that keep initial values, all
    of them or in part.

    Those are the ones whose name contains a word of `ignore`, and the class tensors (one row per class) if the classes
    differ: rows of classes that both models know by name are carried over, the others keep their initial values.
    `class_names` (id to name) are the new classes. The old ones are in the checkpoint; a released checkpoint without
    names has COCO's if the number of rows agrees. Of the rows of queries, the first ones are carried over.
    no_object: the last row of the class heads stands for "no object" (softmax). A table of the result is logged. Heads
    for one-to-many supervision that the checkpoint lacks start as copies of its heads; those that the model lacks are
    left out.

    Raises UserError if anything else does not fit, because that means another architecture.
    """
    own = model.state_dict()
    checkpoint = read_checkpoint(source)
    state = to_our_layout(model_state(checkpoint, ema=True), own)
    ignored = {key for key in {*own, *state} if any(word in key for word in ignore or [])}
    state = _with_further_heads({key: value for key, value in state.items() if key not in ignored},
                                [key for key in own if key not in ignored], source)
    check_numbers(state, own, str(source))
    old_names = checkpoint.get("class_names")
    if old_names is None:
        old_names = COCO_CLASSES if _has_coco_classes(state) else {}
        if not old_names and class_names is not None:
            logger.warning("%s does not name its classes and has another number of them than COCO", source)
    rows = {} if class_names is None else shared_ids(class_names, old_names)
    same_classes = class_names is None or all(rows.get(i) == i for i in class_names)
    other_rows = {key for key in own if key in state and _differ_in_rows(state[key], own[key])}
    by_class = {key for key in own if key in state and CLASS_TENSORS.search(key)
                and (key in other_rows or not same_classes and shape_of(state[key]) == own[key].shape)}
    for key in by_class:
        state[key] = carry_rows(own[key].cpu(), state[key], rows, keep_last=no_object)
    by_query = {key for key in other_rows if QUERY_TENSORS.search(key)}
    grown = {key for key in by_query if len(state[key]) < len(own[key])}
    for key in sorted(by_query):
        same = range(min(len(state[key]), len(own[key])))
        logger.info("%s has %d queries, this model %d: the first %d of %s are carried over%s", source, len(state[key]),
                    len(own[key]), len(same), key, "; the others are fresh" if key in grown else "")
        state[key] = carry_rows(own[key].cpu(), state[key], dict(zip(same, same)), keep_last=False)
    missing, unexpected, mismatched = compare_states(state, own)
    missing = [key for key in missing if key not in ignored]
    if missing or unexpected or mismatched:
        problems = (listed_tensors("missing", missing) + listed_tensors("unexpected", unexpected)
                    + listed_tensors("of another shape (checkpoint, model)", mismatched))
        raise UserError(f"{source} does not fit the model that the config describes:\n" + "\n".join(problems)
                        + "\n  --finetune_ignore WORD ... leaves out tensors by name")
    model.load_state_dict(state, strict=False)
    fresh = ignored & own.keys()
    logger.info("start from %s\n%s", source, _table(own, state, fresh, by_class))
    if by_class and class_names is not None:
        carried = [name for i, name in class_names.items() if i in rows]
        others = [name for i, name in class_names.items() if i not in rows]
        logger.info("classes carried over by name: %s; fresh: %s", ", ".join(carried) or "none",
                    ", ".join(others) or "none")
    return sorted(fresh | by_class | grown)


def _with_further_heads(state: dict[str, Tensor], own: list[str], source: str | os.PathLike) -> dict[str, Tensor]:
    """With the one-to-many heads that the names `own` ask for: a model without them must be good for a training with
    them, and the reverse."""
    unused = [key for key in state if key.startswith(FURTHER_HEADS) and key not in own]
    copies = {key: state[main] for key in own if key.startswith(FURTHER_HEADS) and key not in state
              and (main := key.removeprefix(FURTHER_HEADS)) in state}
    if unused:
        logger.info("%s has heads for one-to-many supervision, which this training does not use", source)
    if copies:
        logger.info("%s has no heads for one-to-many supervision: they start as copies of its heads", source)
    return {key: value for key, value in state.items() if key not in unused} | copies


def _has_coco_classes(state: dict[str, Tensor]) -> bool:
    """Whether class heads have a row for each of COCO's ids, or one more for "no object"."""
    rows = {shape_of(value)[:1] for key, value in state.items() if CLASS_TENSORS.search(key) and "class_embed" in key}
    return rows <= {(len(COCO_CLASSES),), (len(COCO_CLASSES) + 1,)}


def _differ_in_rows(saved: Tensor, own: Tensor) -> bool:
    """Whether the shapes are the same except for the number of rows."""
    shape = shape_of(saved)
    return len(shape) == own.dim() > 0 and 0 < shape[0] != len(own) and shape[1:] == own.shape[1:]


def carry_rows(fresh: Tensor, saved: Tensor, rows: dict[int, int], keep_last: bool) -> Tensor:
    """A copy of `fresh` [rows, ...] with rows of `saved`: those of `rows` (new to old), and the last if wanted."""
    result = fresh.clone()
    for new, old in rows.items():
        if new < len(result) and old < len(saved):
            result[new] = saved[old]
    if keep_last:
        result[-1] = saved[-1]
    return result


def _table(own: dict[str, Tensor], state: dict[str, Tensor], fresh: set[str], by_class: set[str]) -> str:
    """How many tensors of each part were loaded."""
    counts = Counter((_part(key), "by class" if key in by_class else "fresh" if key in fresh else "loaded")
                     for key in own if key in state or key in fresh)
    columns = ("loaded", "by class", "fresh")
    lines = [f"{'tensors of':<36}" + "".join(f"{name:>10}" for name in columns)]
    for part in dict.fromkeys(part for part, _ in counts):
        lines.append(f"{part:<36}" + "".join(f"{counts[part, name]:>10}" for name in columns))
    return "\n".join(lines)


def _part(key: str) -> str:
    words = key.split(".")
    return ".".join(words[:2] if words[0] in ("transformer", "stages") else words[:1])
