"""Weights for a detector with fewer queries or decoder layers than they were trained with."""
import logging
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

logger = logging.getLogger(__name__)

# Tensors with one row per query.
QUERY_TENSORS = re.compile(r"(tgt_embed|query_embed(\.\d+)?)\.weight$")
_LISTED = re.compile(r"(.*?(?:decoder\.layers|class_embed|bbox_embed))\.(\d+)(\..*)")
_LAYERS = "transformer.decoder.layers"  # of the detectors whose layers have heads of their own


def shortened_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that a model with the state dict `own` uses, if it has fewer queries (the first ones) or
    fewer decoder layers (the first ones, with their heads). The names are this project's.
    """
    return _fewer_queries(_fewer_layers(state, own), own)


def _fewer_queries(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = dict(state)
    for key, value in own.items():
        rows = state.get(key)
        if (QUERY_TENSORS.search(key) and rows is not None and not rows.is_nested
                and rows.shape[1:] == value.shape[1:] and len(rows) > len(value)):
            logger.info("%s: the first %d of %d queries are used", key, len(value), len(rows))
            result[key] = rows[:len(value)]
    return result


def _fewer_layers(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    saved, wanted = _lengths(state), _lengths(own)
    result = {}
    for key, value in state.items():
        found = _LISTED.match(key)
        if found and saved[found[1]] > wanted.get(found[1], 0) > 0:
            place = _new_place(int(found[2]), found[1], saved, wanted)
            if place is None:
                continue
            key = f"{found[1]}.{place}{found[3]}"
        result[key] = value
    for name, count in wanted.items():
        if name.endswith("decoder.layers") and saved.get(name, 0) > count:
            logger.info("%s: the first %d of %d are used", name, count, saved[name])
    return result


def _new_place(place: int, name: str, saved: Mapping[str, int], wanted: Mapping[str, int]) -> int | None:
    """Where the entry `place` of a list of layers or heads belongs in a shorter list; None: nowhere. The last heads of
    a detector of two stages, one more than it has layers, are for the proposals: they remain the last.
    """
    if name.endswith("decoder.layers"):
        return place if place < wanted[name] else None
    if saved[name] - wanted[name] != saved.get(_LAYERS, 0) - wanted.get(_LAYERS, 0):
        return place  # not for want of layers: an error will say so
    for_proposals = saved[name] - saved[_LAYERS]
    if place >= saved[_LAYERS]:
        return place - saved[_LAYERS] + wanted[_LAYERS]
    return place if place < wanted[name] - for_proposals else None


def _lengths(names: Iterable[str]) -> dict[str, int]:
    """How many entries the lists of layers and heads have."""
    lengths: dict[str, int] = {}
    for found in filter(None, map(_LISTED.match, names)):
        lengths[found[1]] = max(lengths.get(found[1], 0), int(found[2]) + 1)
    return lengths
