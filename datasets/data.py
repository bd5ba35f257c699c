"""A data set of any layout, of which each split is read once: by one process, for all on its machine."""
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import cache
from datasets.formats import find_layout
from datasets.formats.combined import Share
from datasets.formats.parsed import Note, usable
from datasets.formats.places import named_places
from datasets.formats.source import Layout, Source
from datasets.table import Table
from util.distributed import all_gather, is_main
from util.errors import UserError
from util.options import DataOptions

logger = logging.getLogger(__name__)
SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """The table that training and evaluation use (see usable), and where it is from."""

    table: Table
    source: Source


class DetectionData:
    """The data at a path, in the places that the options name, or both: those of the options then replace the path's
    splits of that name.

    options: also say whether a val set is split off the train set. cache_folder: where the tables of large sets are
    kept; None: nowhere. Raises UserError if nothing known is there. In a distributed run, every process must read the
    same splits in the same order.
    """

    def __init__(self, path: str | Path | None, options: DataOptions | None = None, cache_folder: Path | None = None):
        options = options or DataOptions()
        self.layout = _layout(path, options)
        self.root = path if path is not None else self.layout.name
        self.sources = _with_val(self.layout, options)
        self.cache_folder = cache_folder
        self._splits: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """"train", "val" or "test". Raises UserError if it is not there or cannot be used."""
        if name not in self._splits:
            source = self.source(name)
            table, notes = self._read(source)
            for level, text in notes:
                logger.log(level, "%s", text)
            self._splits[name] = Split(table, source)
        return self._splits[name]

    def source(self, name: str) -> Source:
        """Raises UserError if the data set has no such split."""
        if name not in self.sources:
            advice = "; --options val_fraction=0.1 splits a tenth off the train set" if name == "val" else ""
            raise UserError(f"no {name} set in {self.root}: {self.layout.name} has {self.layout.holds}{advice}")
        return self.sources[name]

    def shared_images(self) -> list[str]:
        """Image files that are in the train set and in the val set."""
        train, val = (self.split(name) for name in ("train", "val"))
        if not any(one == other or one in other.parents or other in one.parents
                   for one in map(_absolute, train.source.folders) for other in map(_absolute, val.source.folders)):
            return []
        return sorted(_paths(train) & _paths(val))

    def _read(self, source: Source) -> tuple[Table, list[Note]]:
        def read() -> tuple[Table, list[Note]]:
            return usable(source.read(), source.annotations, source.title)

        if self.cache_folder is None:
            return read()
        state, size, count = source.state()
        if any(all_gather(size < cache.LEAST_BYTES and count < cache.LEAST_FILES)):
            return read()
        path = cache.cache_file(self.cache_folder, source.title, repr([str(part) for part in source.parts()]))
        found, error = cache.read_table(path, state), ""
        if not all(all_gather(found is not None)):
            if is_main():
                try:
                    found = found or read()
                    found = _kept(path, state, *found)
                except UserError as refusal:
                    error = str(refusal)
            error = all_gather(error)[0]  # as every process would have found it
            if error:
                raise UserError(error)
            found = found or cache.read_table(path, state)
        return found or read()


def _layout(path: str | Path | None, options: DataOptions) -> Layout:
    places = {name: (getattr(options, f"{name}_images"), getattr(options, f"{name}_annotations"))
              for name in SPLIT_NAMES}
    named = named_places(places) if any(any(place) for place in places.values()) else None
    if path is None:
        if named is None:
            raise UserError("no data: pass --data PATH, or name the places in the config (train_images, "
                            "train_annotations, val_images, ...)")
        return named
    layout = find_layout(path)
    return layout if named is None else replace(layout, sources={**layout.sources, **named.sources})


def _with_val(layout: Layout, options: DataOptions) -> Mapping[str, Source]:
    """The splits of a layout, and the val set that is split off."""
    if not options.val_fraction:
        return layout.sources
    if "val" in layout.sources:
        raise UserError(f"val_fraction={options.val_fraction} is for data without a val set, and {layout.root} has "
                        f"{layout.sources['val'].title}: set val_fraction=0")
    if "train" not in layout.sources:
        raise UserError(f"val_fraction={options.val_fraction} splits off the train set, and {layout.root} has none: "
                        "set val_fraction=0")
    whole, shared = layout.sources["train"], (options.val_fraction, options.val_seed)
    return {**layout.sources, "train": Share(f"{whole.title} (train part)", whole, *shared, rest=True),
            "val": Share(f"{whole.title} (val part)", whole, *shared, rest=False)}


def _kept(path: Path, state: str, table: Table, notes: list[Note]) -> tuple[Table, list[Note]]:
    """Writes the table, unless it is there; returns what the file maps, so that the memory of the reading is free."""
    if found := cache.read_table(path, state):
        return found
    try:
        cache.write_table(path, state, table, notes)
    except UserError as error:
        logger.warning("%s. Every process reads the data set, at every start", error)
    return cache.read_table(path, state) or (table, notes)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _paths(split: Split) -> set[str]:
    folders = [os.path.abspath(folder) for folder in split.source.folders]
    return {os.path.join(folders[folder], name)
            for folder, name in zip(split.table.folders.tolist(), split.table.file_names)}
