"""The training step and the evaluation, as straight loops."""
import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.coco_eval import Detections, coco_results
from datasets.loaders import DetectionLoader, worker_crash_as_user_error
from datasets.transforms import model_input
from models.criterion import SetCriterion, weighted_sum
from models.postprocess import PostProcess
from util.distributed import all_gather, all_reduce_mean, is_main, rank, world_size
from util.errors import UserError
from util.files import write_text
from util.logger import Progress
from util.metrics import Meters
from util.nested_tensor import NestedTensor
from util.options import TrainingOptions
from util.signals import StopRequest
from util.train_state import TrainState


class Batches(Protocol):
    """A loader or a list: pairs of samples and targets, and how many there are."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator: ...


class NonFiniteError(UserError):
    """A loss or gradient is NaN or infinite: the weights that would follow are worthless."""


@dataclass(frozen=True)
class Evaluation:
    """What a model detects on a data set, the same on every process."""

    detections: Detections  # of every image that was read
    losses: dict[str, float]  # means over the batches; {} without a criterion


def train_one_epoch(model: nn.Module, criterion: SetCriterion, loader: Batches, state: TrainState,
                    options: TrainingOptions, device: torch.device, output_dir: Path, *,
                    amp_dtype: torch.dtype | None = None,
                    stop: StopRequest | None = None, save: Callable[[TrainState], None] | None = None) -> bool:
    """Trains from batch `state.step` to the end of the epoch; `state.meters` accumulates means of the losses.

    model is state.model, possibly wrapped in DDP. `loader` yields the remaining batches. `save` is called every
    `options.checkpoint_steps` optimizer steps within the epoch (0: never). Returns False if `stop` ended it early,
    after a complete optimizer step on all processes. Raises NonFiniteError, after writing the batch's image ids to
    output_dir.
    """
    model.train()
    criterion.train()
    total, accumulate = state.step + len(loader), options.grad_accum_steps
    progress = Progress(f"epoch {state.epoch}", total, state.step, quiet=not is_main())
    grad_norm = torch.tensor(state.grad_norm, device=device)
    previous: list[dict] = []
    for samples, targets in progress(loader):
        lr = state.optimizer.param_groups[0]["lr"]
        group = min(accumulate, total - state.step // accumulate * accumulate)
        ends_group = (state.step + 1) % accumulate == 0 or state.step + 1 == total
        samples, targets = to_device(samples, targets, device)
        with gradient_exchange(model, ends_group):
            with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
                outputs = model(samples, targets)
            losses = criterion(outputs, targets)
            loss = weighted_sum(losses, criterion.weight_dict)

            # One transfer to the host: the losses, the gradient norm of the previous step, and whether any process was
            # asked to stop.
            skipped = loss.new_full((), sum(t.get("skipped", 0) for t in targets))
            asked = loss.new_full((), float(stop is not None and stop.requested))
            values = reduced({"loss": loss, **losses, "grad_norm": grad_norm, "stop": asked,
                              "skipped_images": skipped * world_size()})
            if not state.scaler.is_enabled():  # the scaler skips such steps itself
                require_finite("gradient norm", values["grad_norm"], previous, state.epoch, state.step - 1, output_dir)
            require_finite("loss", values["loss"], targets, state.epoch, state.step, output_dir, loss.detach())
            if values.pop("non_finite_costs", 0) > 0:
                require_finite("matching cost", math.nan, targets, state.epoch, state.step, output_dir)
            state.scaler.scale(loss / group).backward()
        previous = targets
        if ends_group:
            state.scaler.unscale_(state.optimizer)
            limit = options.clip_max_norm if options.clip_max_norm > 0 else float("inf")
            grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), limit)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            if state.ema is not None and state.epoch >= options.ema_epoch:
                state.ema.update_parameters(state.model)
            state.scheduler.step()
        state.step += 1
        stopping = values.pop("stop") > 0
        state.meters.update(values | {"lr": lr})
        progress.show(f"loss {values['loss']:.3f} (mean {state.meters.means()['loss']:.3f}) "
                      f"class error {values['class_error']:.0f} % lr {lr:.1e}")
        if stopping and ends_group:
            break
        if save is not None and ends_group and state.step < total and is_due(state.step // accumulate, options):
            note_grad_norm(state, grad_norm, previous, output_dir)
            save(state)
    note_grad_norm(state, grad_norm, previous, output_dir)
    return state.step == total


def is_due(steps: int, options: TrainingOptions) -> bool:
    """Whether a checkpoint within an epoch is due after `steps` optimizer steps of it."""
    return options.checkpoint_steps > 0 and steps % options.checkpoint_steps == 0


def note_grad_norm(state: TrainState, grad_norm: Tensor, targets: list[dict], output_dir: Path) -> None:
    """Before the state is saved: weights after a step that was not finite must not get into a checkpoint."""
    state.grad_norm = float(grad_norm)
    if not state.scaler.is_enabled():
        require_finite("gradient norm", state.grad_norm, targets, state.epoch, state.step - 1, output_dir)


@torch.no_grad()
def evaluate(model: nn.Module, criterion: SetCriterion | None, postprocess: PostProcess, loader: DetectionLoader,
             device: torch.device, *, amp_dtype: torch.dtype | None = None, max_batches: int | None = None
             ) -> Evaluation:
    """Detections, and with a criterion losses, on the images of `loader` (its first batches if max_batches is given).

    The processes exchange their results. datasets.coco_eval.summarize says what the detections are worth.
    """
    model.eval()
    if criterion is not None:
        criterion.eval()
    meters, detections = Meters(), Detections()
    total = len(loader) if max_batches is None else min(max_batches, len(loader))
    progress = Progress("evaluation", total, quiet=not is_main())
    with worker_crash_as_user_error(loader):
        for samples, targets in progress(islice(loader, total)):
            samples, targets = to_device(samples, targets, device)
            with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
                outputs = model(samples)
            sizes = torch.stack([t["orig_size"] for t in targets])
            detections |= coco_results([t["image_id"] for t in targets], postprocess(outputs, sizes),
                                       loader.dataset.coco.cats)
            if criterion is not None:
                losses = criterion(outputs, targets)
                losses["loss"] = weighted_sum(losses, criterion.weight_dict)
                meters.update(dict(zip(losses, stacked(losses).tolist())))
    for share in all_gather(detections):
        detections |= share
    return Evaluation(detections, merged_means(all_gather(meters.state_dict())))


def to_device(samples: NestedTensor, targets: list[dict], device: torch.device) -> tuple[NestedTensor, list[dict]]:
    targets = [{name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in target.items()} for target in targets]
    return model_input(samples.to(device, non_blocking=True)), targets


def gradient_exchange(model: nn.Module, ends_group: bool) -> contextlib.AbstractContextManager:
    """DDP exchanges gradients only in the last batch of a group."""
    if isinstance(model, DistributedDataParallel) and not ends_group:
        return model.no_sync()
    return contextlib.nullcontext()


def reduced(values: dict[str, Tensor]) -> dict[str, float]:
    """Means over the processes, on the host."""
    return dict(zip(values, all_reduce_mean(stacked(values)).tolist()))


def stacked(values: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.detach().float() for value in values.values()])


def merged_means(states: list[dict]) -> dict[str, float]:
    """Means over the batches of all processes."""
    names = states[0]["sums"]
    count = {name: sum(s["counts"].get(name, 0) for s in states) for name in names}
    return {name: sum(s["sums"].get(name, 0.0) for s in states) / count[name] for name in names}


def require_finite(what: str, value: float, targets: list[dict], epoch: int, step: int, output_dir: Path,
                   own_value: Tensor | None = None) -> None:
    """Every process sees the reduced `value` of a step, so all stop together; each writes the image ids of its own
    batch."""
    if math.isfinite(value):
        return
    record = {"what": what, "value": str(value if own_value is None else float(own_value)), "epoch": epoch,
              "step": step, "image_ids": [t["image_id"] for t in targets]}
    path = output_dir / f"non_finite_rank{rank()}.json"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=1, default=str))
        listed = f"are in {path}"
    except (OSError, UserError):  # a full disk must not hide what happened to the training
        listed = f"are {record['image_ids']}"
    raise NonFiniteError(f"the {what} is {value} in epoch {epoch}, step {step}; the batch's image ids {listed}. The "
                         "last checkpoint is intact. Lower lr or clip_max_norm, or leave out --amp")
