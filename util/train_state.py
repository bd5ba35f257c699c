"""Everything that a training needs to continue exactly where it stopped."""
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from util.checkpoint import fitting_weights, model_state
from util.distributed import all_gather, rank
from util.errors import UserError
from util.metrics import Meters
from util.saved_state import check_entries, damaged, optimizer_state

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """`epoch` is in progress; `step` counts its finished batches. `best_ap` is the best val AP, and
    `stale_evaluations` counts the evaluations since then."""

    model: nn.Module  # not wrapped in DDP
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler
    ema: AveragedModel | None = None
    epoch: int = 0
    step: int = 0
    best_ap: float = float("-inf")
    stale_evaluations: int = 0
    images_per_step: int = 1  # of all processes
    grad_norm: float = 0.0  # of the latest optimizer step
    seconds: float = 0.0  # from the start of the training to the latest checkpoint, without what interruptions took
    meters: Meters = field(default_factory=Meters)

    def note_ap(self, ap: float) -> bool:
        """Records the val AP of an evaluation, below 0 if there was none. Returns whether these weights are the best so
        far; as long as there was no AP the latest are."""
        if ap < 0:
            return self.best_ap < 0
        if ap > self.best_ap:
            self.best_ap, self.stale_evaluations = ap, 0
            return True
        self.stale_evaluations += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """To be called on every process: it gathers their random states. "epoch" is the last finished one, as in the
        published checkpoints."""
        random_state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random_state["cuda"] = torch.cuda.get_rng_state()
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(), "epoch": self.epoch - 1, "step": self.step,
            "images_per_step": self.images_per_step, "best": self.best_ap, "stale": self.stale_evaluations,
            "meters": self.meters.state_dict(), "rng": all_gather(random_state), "grad_norm": self.grad_norm,
            "seconds": self.seconds,
        }
        if self.ema is not None and self.ema.n_averaged > 0:
            state["ema_model"] = self.ema.module.state_dict()
            state["ema_updates"] = self.ema.n_averaged
        return state

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Restores everything but the schedule, which follows from epoch and step: see util.optim.advance_scheduler.

        Raises UserError for a checkpoint without a training state, such as a released one, and for an entry that is
        damaged; nothing has changed then.
        """
        absent = {"optimizer", "scaler", "rng", "step", "images_per_step"} - set(state)
        if absent:
            raise UserError(f"{source} holds no training state of this program ({', '.join(sorted(absent))} missing); "
                            "--pretrain_model_path starts a new training from its weights")
        check_entries(state, source)
        weights = fitting_weights(self.model, _weights(state, "model", source), source)
        optimizer = optimizer_state(state["optimizer"], self.optimizer, source)
        averages = None
        if "ema_model" in state:
            averages = fitting_weights(self.model, _weights(state, "ema_model", source), f"ema_model of {source}")

        self.model.load_state_dict(weights, strict=False)
        self.optimizer.load_state_dict(optimizer)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.grad_norm, self.seconds = state["epoch"] + 1, state["grad_norm"], state.get("seconds", 0.0)
        self.best_ap, self.stale_evaluations = state["best"], state.get("stale", 0)
        # The number of processes may have changed: images count, not batches.
        self.step = state["step"] * state["images_per_step"] // self.images_per_step
        self.meters.load_state_dict(state["meters"])
        if self.ema is not None and averages is not None:
            self.ema.module.load_state_dict(averages, strict=False)
            self.ema.n_averaged.fill_(int(state["ema_updates"]))
        elif self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())
        self._restore_random(state["rng"], source)

    def _restore_random(self, states: list[dict[str, torch.Tensor]], source: str) -> None:
        if rank() >= len(states):
            logger.warning("%s was written by %d processes: this one starts from fresh random numbers",
                           source, len(states))
            return
        torch.set_rng_state(states[rank()]["cpu"])
        if "cuda" in states[rank()] and torch.cuda.is_available():
            torch.cuda.set_rng_state(states[rank()]["cuda"])


def _weights(state: dict[str, Any], name: str, source: str) -> dict[str, torch.Tensor]:
    entry = state.get(name)
    if not isinstance(entry, dict) or not any(isinstance(value, torch.Tensor) for value in entry.values()):
        raise damaged(source, f"its entry {name!r} holds no weights")
    return model_state({"model": entry})
