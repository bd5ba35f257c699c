"""The runs of tools/compare_recipes.py: what each is made with, which are finished, and several at a time."""
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.adapt import SIZES
from recipe_file import Recipe
from reports.recipes import read_run
from util.config import load_config
from util.cpu import available_cpus
from util.errors import UserError
from util.files import write_text
from util.options import changed_keys, parse_options
from util.signals import StopRequest

RECORD, OUTPUT = "recipe.json", "output.txt"
POLL = 0.2  # seconds between looks at the running processes


@dataclass(frozen=True)
class RecipeRun:
    """A recipe with a seed, in a folder of its own. flags: of main.py, the same for all runs."""

    recipe: Recipe
    seed: int
    folder: Path
    flags: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"

    def arguments(self) -> list[str]:
        """main.py's."""
        return ["-c", self.recipe.config, "--seed", str(self.seed), "--output_dir", str(self.folder), "--resume",
                "auto", "--num_workers", "0", *self.flags,
                *(["--options", *self.recipe.pairs] if self.recipe.pairs else [])]

    def made_with(self) -> dict[str, Any]:
        """All that its result depends on, as JSON has it."""
        return {"options": self.recipe.options.to_dict(), "seed": self.seed, "flags": list(self.flags)}

    def record(self, **more: Any) -> None:
        write_text(self.folder / RECORD, json.dumps(self.made_with() | more, indent=1) + "\n")

    def recorded(self) -> dict[str, Any]:
        """What the folder says of the run in it; {} if none has come to its first checkpoint.

        Raises UserError if it was made with anything else than this run.
        """
        if not any((self.folder / name).exists() for name in ("checkpoint.pth", "log.txt")):
            return {}
        advice = "choose another --output_dir, or remove the folder"
        try:
            found = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            before = {name: found[name] for name in self.made_with()}
            # Keys that are newer than the run had the effect of their defaults.
            before["options"] = parse_options(before["options"]).to_dict()
        except UserError as error:
            raise UserError(f"{self.folder} holds a run of another version of this program ({error}): {advice}"
                            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.folder} holds a training without a {RECORD} of this program: {advice}") from error
        if before != self.made_with():
            raise UserError(f"{self.folder} holds a run that was made otherwise "
                            f"({_differences(before, self.made_with())}): {advice}")
        changed = self._changed_config()
        if changed:
            raise UserError(f"{self.folder}/config.py says that the run was continued with other options "
                            f"({changed}): {advice}")
        return found

    def _changed_config(self) -> str:
        """What main.py recorded and is not what was asked for. The data decide on some values."""
        path, wanted = self.folder / "config.py", self.recipe.options
        if not path.is_file():
            return ""
        by_data = {"num_classes"} if wanted.data.num_classes == "auto" else set()
        by_data |= {"image_size", *SIZES} if wanted.data.image_size is not None else set()
        changed = changed_keys(load_config(path), wanted)
        return ", ".join(f"{key} {old!r}, not {new!r}" for key, (old, new) in changed.items() if key not in by_data)

    @property
    def finished(self) -> bool:
        return self.recorded().get("finished") is True

    def circumstances(self) -> dict[str, Any]:
        """Of a run that has started: processors, and the program's version. They may differ between runs."""
        try:
            version = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["git"]
        except (OSError, ValueError, KeyError, TypeError):
            version = "unknown"
        return {"processors": self.recorded().get("processors"), "version": version}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    flat = [{**content["options"], "seed": content["seed"], "flags": " ".join(content["flags"])}
            for content in (before, now)]
    return ", ".join(f"{name} {flat[0].get(name)!r}, not {flat[1].get(name)!r}"
                     for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name))


def plan(recipes: Sequence[Recipe], seeds: int, folder: Path, flags: Sequence[str]) -> list[RecipeRun]:
    """Seed by seed over all recipes: at any time, nearly all that is finished has its partner."""
    return [RecipeRun(recipe, seed, folder / recipe.name / f"seed_{seed}", tuple(flags))
            for seed in range(seeds) for recipe in recipes]


class Slots:
    """Shares of the processors, each of the same size."""

    def __init__(self, count: int):
        self.pins = hasattr(os, "sched_setaffinity")
        self.all = sorted(os.sched_getaffinity(0)) if self.pins else list(range(available_cpus()))
        if not 1 <= count <= len(self.all):
            raise UserError(f"--parallel must be from 1 to {len(self.all)}, the processors of this machine or job")
        share = len(self.all) // count
        self.free = [self.all[i * share:(i + 1) * share] for i in range(count)]

    @contextmanager
    def pinned(self, processors: list[int]) -> Iterator[None]:
        """Processes that are started within run on these processors only."""
        if self.pins:
            os.sched_setaffinity(0, processors)
        try:
            yield
        finally:
            if self.pins:
                os.sched_setaffinity(0, self.all)


class Running:
    """A started main.py. Its output follows that of earlier starts in output.txt."""

    def __init__(self, run: RecipeRun, program: Path, slots: Slots, processors: list[int]):
        self.run, self.processors = run, processors
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(program), *run.arguments()]
        environment = os.environ | {"OMP_NUM_THREADS": str(len(processors)), "OMP_WAIT_POLICY": "passive"}
        # The lock is the child's too: it holds as long as either lives, also if this program is killed.
        with (run.folder / "run.lock").open("w") as lock, (run.folder / OUTPUT).open("a", encoding="utf-8") as output:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{run.folder}: a process still trains there; wait for it or end it") from error
            print(f"{run.title}: {'goes on' if run.recorded() else 'starts'} in {run.folder}", flush=True)
            run.record(processors=len(processors))
            with slots.pinned(processors):
                # In a session of its own: the terminal's Ctrl-C reaches it through this program, once.
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                                                pass_fds=[lock.fileno()])

    def output_end(self, lines: int = 15) -> str:
        text = (self.run.folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def run_all(runs: Sequence[RecipeRun], slots: Slots, program: Path, stop: StopRequest,
            ended: Callable[[RecipeRun, str | None], None]) -> None:
    """Starts main.py (`program`) for the runs in their order, as many at a time as there are slots.

    ended(run, failure): called after each one, with None or what went wrong. If a stop is requested, the running ones
    are told to stop too, and write their checkpoints. However this function ends, no process is left.
    """
    waiting, active = list(runs), list[Running]()
    told = False
    try:
        while active or (waiting and not stop.requested):
            while waiting and slots.free and not stop.requested:
                run = waiting.pop(0)
                try:
                    active.append(Running(run, program, slots, slots.free[0]))
                    slots.free.pop(0)
                except UserError as error:
                    ended(run, str(error))
            if stop.requested and not told:
                told = True
                print(f"stopping: {len(active)} runs finish their step and write a checkpoint", flush=True)
                for running in active:
                    running.process.send_signal(signal.SIGTERM)
            for running in [r for r in active if r.process.poll() is not None]:
                active.remove(running)
                slots.free.append(running.processors)
                _end(running, told, ended)
            time.sleep(POLL if active else 0)
    finally:
        for running in active:
            running.process.kill()
            running.process.wait()


def _end(running: Running, told: bool, ended: Callable[[RecipeRun, str | None], None]) -> None:
    run, code = running.run, running.process.returncode
    if code == 0:
        try:
            read_run(run.folder, run.seed)
        except UserError as error:  # nothing to compare
            ended(run, str(error))
            return
        run.record(processors=len(running.processors), finished=True)
        ended(run, None)
    elif not told:
        ended(run, f"exit code {code}; the end of {run.folder / OUTPUT}:\n{running.output_end()}")
