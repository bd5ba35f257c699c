"""The parts of tools/soak.py that fill disks and damage files."""
import copy
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.amp import GradScaler

from datasets.coco import read_annotations
from models import build_model
from soaking import Soak, differences
from util.checkpoint import load_weights, read_checkpoint
from util.config import load_config
from util.errors import UserError
from util.optim import MovingAverage, build_optimizer, build_scheduler
from util.options import parse_options
from util.train_state import TrainState

MEGABYTES = 90  # a run asks for 53 and keeps 45


def fill_disks(soak: Soak) -> None:
    """Before its write number 0, 1, 2, ... the disk of a training is filled; then there is room and it goes on."""
    disk, whole = soak.folder / "disk", soak.folder / "whole"
    soak.expect(soak.run(whole), 0)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        soak.say("skipped: mounting a small disk needs root")
        return
    try:
        for number in range(99):
            out = disk / f"run{number}"
            run = soak.run(out, fault=_fill_at_write(number, disk / "ballast"))
            (disk / "ballast").unlink(missing_ok=True)
            if run.code == 0:
                soak.say(f"{number} writes met a full disk")
                break
            errors = [line for line in run.output.splitlines() if "error:" in line]
            soak.check(run.code == 2 and "Traceback" not in run.output and len(errors) == 1, run,
                       f"write {number}: exit code {run.code}, {len(errors)} lines with an error")
            for path in out.glob("*.pth"):
                read_checkpoint(path)
            soak.expect(soak.run(out), 0)
            for difference in differences(out, whole):
                soak.fault(f"write {number}: {difference}")
            subprocess.run(["rm", "-r", out], check=True)
            if not soak.time_left():
                soak.say(f"{number + 1} writes met a full disk; there was no time for the rest")
                break
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill_at_write(number: int, ballast: Path) -> Callable[[], None]:
    """A fault: no byte is left on the disk before the write of this number (from 0)."""
    def fill() -> None:
        with open(ballast, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def fault() -> None:
        rename, count = os.replace, 0

        def filling(source: Any, target: Any) -> None:
            nonlocal count
            rename(source, target)
            count += 1
            if count == number:
                fill()

        os.replace = filling  # type: ignore[assignment]
        if number == 0:
            fill()

    return fault


# damaged files

def damage(soak: Soak) -> None:
    """Bytes and values of checkpoints, safetensors and annotation files are changed: success or UserError."""
    soak.expect(soak.run(soak.folder / "whole", options=["epochs=1"]), 0)
    checkpoint = soak.folder / "whole/checkpoint.pth"
    content = torch.load(checkpoint, weights_only=True)
    config = load_config(soak.workshop.config)
    options, path = parse_options(config), soak.folder / "damaged"
    model = build_model(config)[0]
    weights = {name: x.clone(memory_format=torch.contiguous_format) for name, x in content["model"].items()}
    save_file(weights, soak.folder / "whole.safetensors")
    annotations = soak.workshop.data / "annotations/instances_val2017.json"
    target = soak.folder / "set/annotations/instances_val2017.json"
    target.parent.mkdir(parents=True)

    def resume(file: Path) -> None:
        optimizer = build_optimizer(model, options.training)
        scheduler = build_scheduler(optimizer, options.training, 4)
        state = TrainState(model, optimizer, scheduler, GradScaler("cpu", enabled=False), MovingAverage(model, 0.9))
        state.load_state_dict(read_checkpoint(file), str(file))

    def load(file: Path) -> None:
        load_weights(model, file)

    def read(file: Path) -> None:
        read_annotations(file.parents[1], "val")

    def flipped(source: Path, file: Path) -> str:
        data = bytearray(source.read_bytes())
        ends = soak.random.random() < 0.5  # where names and sizes are
        for _ in range(soak.random.randint(1, 4)):
            data[soak.random.randrange(-min(20_000, len(data)), 0) if ends else soak.random.randrange(len(data))] ^= (
                1 << soak.random.randrange(8))
        if soak.random.random() < 0.1:
            del data[soak.random.randrange(len(data)):]
        file.write_bytes(data)
        return "bytes"

    def changed_checkpoint(file: Path) -> str:
        mutated = shallow_copy({key: value for key, value in content.items()})
        where = mutate(mutated, soak.random)
        torch.save(mutated, file)
        return where

    def changed_annotations(file: Path) -> str:
        mutated = json.loads(annotations.read_text())
        where = mutate(mutated, soak.random, plain=True)
        file.write_text(json.dumps(mutated), encoding="utf-8")
        return where

    tries: list[tuple[str, Path, Callable[[Path], str], Callable[[Path], None]]] = [
        ("values of a checkpoint", path.with_suffix(".pth"), changed_checkpoint, resume),
        ("bytes of a checkpoint", path.with_suffix(".pth"), lambda file: flipped(checkpoint, file), resume),
        ("bytes of a safetensors file", path.with_suffix(".safetensors"),
         lambda file: flipped(soak.folder / "whole.safetensors", file), load),
        ("values of an annotation file", target, changed_annotations, read),
        ("bytes of an annotation file", target, lambda file: flipped(annotations, file), read)]
    counts, seen = dict.fromkeys((name for name, *_ in tries), 0), set()
    logging.disable(logging.WARNING)  # of every file that can be read
    while soak.time_left():
        for name, file, damaged, use in tries:
            where = damaged(file)
            counts[name] += 1
            try:
                use(file)
            except UserError:
                pass
            except Exception as error:
                kind = f"{type(error).__name__} at {_place(error)}"
                if kind not in seen:
                    soak.fault(f"{name} ({where}): {kind}: {str(error)[:200]}")
                seen.add(kind)
    logging.disable(logging.NOTSET)
    soak.say(", ".join(f"{count} {name}" for name, count in counts.items()))


def _place(error: Exception) -> str:
    """The project's line that an error passed last."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "site-packages" not in name and "soak" not in Path(name).name:
            place = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def shallow_copy(node: Any) -> Any:
    """Its dicts and lists are new, what they hold is shared."""
    if isinstance(node, dict):
        return {key: shallow_copy(value) for key, value in node.items()}
    return [shallow_copy(value) for value in node] if isinstance(node, list) else node


def places(node: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """(container, key, path) of everything in nested dicts and lists."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield node, key, f"{path}/{key}"
        yield from places(value, f"{path}/{key}")


def mutate(content: dict, random: Any, plain: bool = False) -> str:
    """Changes one value of nested dicts and lists, the outer ones more often; plain: to what JSON knows."""
    values: list[Any] = [None, "text", "", -1, 0, 2**70, 1.5, float("nan"), float("inf"), True, [], {}, [1], {"a": 1}]
    if not plain:
        values += [torch.zeros(0), torch.ones(3), torch.ones(2, 2).to_sparse(), torch.ones(2, dtype=torch.complex64),
                   torch.empty(3, device="meta"), torch.full((3,), float("nan")), b"bytes", (1, 2)]
    everything = list(places(content))
    outer = [place for place in everything if place[2].count("/") <= 2]
    container, key, path = random.choice(outer if random.random() < 0.5 else everything)
    action = random.choice(["replace"] * 6 + ["remove", "add"])
    if action == "remove":
        del container[key]
    elif action == "add" and isinstance(container, dict):
        container[random.choice(["new", "1", ""])] = copy.copy(random.choice(values))
    else:
        container[key] = random.choice(values)
    return f"{action} {path}"
