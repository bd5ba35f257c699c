"""A training from its first epoch, or from where it stopped, to its last."""
import logging
import math
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from datasets.augmentation import Augmentation
from datasets.coco import CocoDetection, check_num_classes
from datasets.coco_eval import Rules, log_entries, log_summary, summarize
from datasets.data import DetectionData
from datasets.loaders import FirstBatches, eval_loader, train_loader, worker_crash_as_user_error
from datasets.mixing import Mixing
from datasets.shapes import largest_train_shape, padding_for
from datasets.transforms import val_transforms
from engine import Evaluation, evaluate, train_one_epoch
from measure.memory import peak_memory
from measure.model_cost import count_parameters
from measure.step_cost import Batch, find_batch_size, worst_batch
from models.criterion import SetCriterion
from models.postprocess import PostProcess
from util.checkpoint import checksum, copy_checkpoint, load_weights, read_checkpoint, write_checkpoint
from util.class_names import disagreement
from util.distributed import all_gather, barrier, data_parallel, is_main, rank, world_size
from util.errors import UserError
from util.files import remove_unfinished
from util.finished_epoch import AP, FinishedEpoch, best_epochs, logged_ap
from util.integers import ceil_div
from util.logger import setup_logging
from util.loggers.several import DEFAULT, RunLoggers, open_loggers
from util.metrics import LogFile, Meters
from util.optim import MovingAverage, advance_scheduler, build_optimizer, build_scheduler
from util.options import Options, changed_keys
from util.precision import amp_dtype
from util.pretrained import load_pretrained
from util.run_folder import prepare_folder, record_run, require_space
from util.run_options import LATEST, RunOptions, Start, StartKind
from util.signals import StopRequest
from util.train_state import TrainState

logger = logging.getLogger(__name__)
BEST = "checkpoint_best.pth"
# The optimizer's state holds what follows from these: a resumed training keeps the values it started with.
KEPT_BY_OPTIMIZER = ("lr", "lr_backbone", "lr_linear_proj_mult", "weight_decay")


class Trainer:
    """A run of main.py that trains: epochs, evaluations, checkpoints and logs in `run.folder`.

    start: what decide_start says of the run. Options change only where the batch size is found (--find_batch_size).
    """

    def __init__(self, run: RunOptions, options: Options, start: Start, data: DetectionData, device: torch.device):
        self.run_options, self.options, self.start, self.data, self.device = run, options, start, data, device
        self.folder, self.log = run.folder, LogFile(run.folder / "log.txt")
        self.amp_dtype = amp_dtype(options.training, run.amp, device)
        self.pad_multiple = padding_for(options.data, device)
        self.unlogged: FinishedEpoch | None = None  # the epoch that a resumed checkpoint ended with
        self.loggers = RunLoggers({})  # those of the main process; the others have none

    def train(self, model: nn.Module, criterion: SetCriterion, postprocess: PostProcess) -> int:
        """Trains to the last epoch. Returns the exit code: 0, or 128 + signal if one asked to stop."""
        self._prepare_folder(model)
        self._open_data()
        if self.run_options.find_batch_size:
            self._fit_batches(model, criterion)
        self._build_loaders()
        state = self._build_state(model)
        wrapped: nn.Module = model
        if torch.distributed.is_initialized():
            wrapped = data_parallel(model, self.device, self.run_options.find_unused_params,
                                    self.options.training.ddp_bf16)
        self._open_logs(model, state)
        finished = False
        try:
            exit_code = self._run_epochs(state, model, wrapped, criterion, postprocess)
            finished = exit_code == 0
        finally:
            self.loggers.close(finished)
        return exit_code

    def _run_epochs(self, state: TrainState, model: nn.Module, wrapped: nn.Module, criterion: SetCriterion,
                    postprocess: PostProcess) -> int:
        training, stop = self.options.training, StopRequest()
        self.start_time = time.time() - state.seconds  # as if it had never been interrupted
        while state.epoch < training.epochs and not self._is_stale(state):
            self.train_loader.batch_sampler.set_epoch(state.epoch, state.step)
            batches = FirstBatches(self.train_loader, self._batches_left(state))
            start_time, start_step = time.perf_counter(), state.step
            with worker_crash_as_user_error(self.train_loader):
                finished = train_one_epoch(wrapped, criterion, batches, state, training, self.device, self.folder,
                                           amp_dtype=self.amp_dtype, stop=stop, save=self._save)
            self._save(state)  # before the evaluation: an error there must not cost this epoch
            if not finished or any(all_gather(stop.requested)):
                logger.warning("stopped in epoch %d after step %d; --resume auto continues from there",
                               state.epoch, state.step)
                return stop.exit_code
            cost = step_cost(time.perf_counter() - start_time, state.step - start_step, self.device)
            self._end_epoch(state, model, criterion, postprocess, cost)
        if self._is_stale(state):
            logger.info("early stop: no better val AP in %d evaluations", state.stale_evaluations)
        best_ap = f"; best val AP {state.best_ap:.3f}" if state.best_ap >= 0 else ""
        logger.info("finished in %s%s", timedelta(seconds=round(time.time() - self.start_time)), best_ap)
        self._summarize_best(model, postprocess)
        return 0

    def _prepare_folder(self, model: nn.Module) -> None:
        if is_main():
            prepare_folder(self.folder)
            remove_unfinished(self.folder)
            training = self.options.training
            numbered = training.epochs // training.save_checkpoint_interval + training.keep_best
            require_space(self.folder, checkpoint_size(model, training.use_ema), numbered + 3)  # latest, best, the next
            setup_logging(rank(), self.folder)
        barrier()

    def _open_data(self) -> None:
        run, options = self.run_options, self.options.data
        self.train_set = CocoDetection(self.data, "train", Augmentation(options, run.fix_size), run.strict_data,
                                       run.seed)
        self.val_set = CocoDetection(self.data, "val", val_transforms(options, run.fix_size))
        train, val = (f"the {split} set of {self.data.root}" for split in ("train", "val"))
        if shared := self.data.shared_images():
            logger.warning("%d val images are train images too, such as %s: the AP on val will be too good",
                           len(shared), shared[0])
        check_num_classes(options.class_count, self.val_set.names, val,
                          "(the train set alone has fewer), or give both sets the same 'categories'")
        names, val_names = self.train_set.names, self.val_set.names
        mixed_up = disagreement(names, train, val_names, val)
        if mixed_up:
            logger.warning("%s. The AP on val is meaningless where both mean different classes", mixed_up)
        unseen = [name for i, name in val_names.items() if i not in names]
        if unseen:
            logger.warning("%s has classes that the train set lacks, and that nothing can be learned of: %s", val,
                           ", ".join(unseen))
        self.class_names = val_names | names  # what an id means is what was learned

    def _fit_batches(self, model: nn.Module, criterion: SetCriterion) -> None:
        """Splits the images of an optimizer step into the largest batches that fit into memory."""
        data = self.options.data
        images = data.batch_size * self.options.training.grad_accum_steps
        sizes = [(width, height) for width, height in self.train_set.table.sizes.tolist()]
        boxes = Mixing(data).most_targets(self.train_set.most_boxes)

        def largest_batch(size: int) -> Batch:
            shape = largest_train_shape(data, sizes, size, self.run_options.fix_size, self.pad_multiple)
            return worst_batch(size, shape, boxes, data.class_count)

        fits = find_batch_size(model, criterion, largest_batch, self.device, self.amp_dtype, most=images)
        batch_size = max(size for size in range(1, fits + 1) if images % size == 0)
        self.options = self.options.replaced(batch_size=batch_size, grad_accum_steps=images // batch_size)
        logger.info("batches of %d images fit into memory: batch_size=%d grad_accum_steps=%d", fits, batch_size,
                    images // batch_size)

    def _build_loaders(self) -> None:
        run, data, training = self.run_options, self.options.data, self.options.training
        self.train_loader = train_loader(self.train_set, data.batch_size, run.num_workers, run.seed,
                                         training.epoch_steps and training.epoch_steps * training.grad_accum_steps,
                                         self.pad_multiple, training.epochs)
        self.val_loader = eval_loader(self.val_set, data.eval_batch_size, run.num_workers)

    def _build_state(self, model: nn.Module) -> TrainState:
        training = self.options.training
        source = self.start.checkpoint
        if source is not None and self.start.kind is StartKind.PRETRAINED:
            load_pretrained(model, source, self.run_options.finetune_ignore, self.class_names,
                            no_object=self.options.loss.classification == "softmax")
        optimizer = build_optimizer(model, training)
        accumulate = training.grad_accum_steps
        steps_per_epoch = ceil_div(len(self.train_loader), accumulate)
        state = TrainState(model, optimizer, build_scheduler(optimizer, training, steps_per_epoch),
                           GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16),
                           MovingAverage(model, training.ema_decay, training.ema_warmup_steps) if training.use_ema
                           else None,
                           epoch=self.run_options.start_epoch,
                           images_per_step=self.options.data.batch_size * world_size())
        if source is not None and self.start.kind is StartKind.RESUMED:
            self._resume(state, source)
        advance_scheduler(state.scheduler, state.epoch * steps_per_epoch + ceil_div(state.step, accumulate))
        return state

    def _resume(self, state: TrainState, source: str) -> None:
        """Continues from a checkpoint, and completes what the run that wrote it was killed before."""
        checkpoint = read_checkpoint(source)
        learned = checkpoint.get("class_names", {})
        changed = disagreement(self.class_names, f"the data of {self.data.root}", learned, source)
        if changed:
            raise UserError(f"{changed}. A training goes on with its own classes; --pretrain_model_path starts a new "
                            "one, which carries classes over by name")
        self.class_names = learned | self.class_names
        compare_config(checkpoint.get("config", {}), self.options, source)
        finished = FinishedEpoch.of(checkpoint, source)
        state.load_state_dict(checkpoint, source)
        # With other batches than before, the epoch may have fewer of them.
        state.step = min(state.step, self.train_loader.batch_sampler.epoch_batches)
        logger.info("resumed %s: epoch %d, step %d", source, state.epoch, state.step)
        latest = self.folder / LATEST
        continues_latest = latest.is_file() and os.path.exists(source) and latest.samefile(source)
        if finished is not None and continues_latest:
            self.unlogged = finished
            if is_main():
                self._copy_latest(finished)
        best = self.folder / BEST
        is_source = best.is_file() and os.path.exists(source) and best.samefile(source)
        best_ap = all_gather((state.best_ap if is_source else ap_of(best)) if is_main() else None)[0]
        if best_ap != state.best_ap:
            logger.warning("%s: the best val AP was %.3f; %s", source, state.best_ap,
                           f"{best} has {best_ap:.3f}, which is to be beaten" if math.isfinite(best_ap)
                           else f"{self.folder} has no {BEST}, so that the next evaluation counts as the best")
            state.best_ap = best_ap

    def _open_logs(self, model: nn.Module, state: TrainState) -> None:
        total_parameters, self.trained_parameters = count_parameters(model)
        if not is_main():
            return
        record_run(self.folder, self.options, self.run_options.arguments)
        first_epoch = self.unlogged.record["epoch"] if self.unlogged else state.epoch
        self.loggers = open_loggers(self.run_options.logger or DEFAULT, self.folder, first_epoch,
                                    self.start.kind is StartKind.RESUMED)
        given = {f"run/{name}": value for name, value in self.run_options.arguments.items() if value is not None}
        self.loggers.config(self.options.to_dict() | given)
        if self.unlogged is not None:
            self._log(self.unlogged)
        logger.info("%d train and %d val images, %d classes; %.2f M parameters, %.2f M trained; %s, %s; output in %s",
                    len(self.train_set), len(self.val_set), len(self.class_names), total_parameters / 1e6,
                    self.trained_parameters / 1e6, self.device, self.amp_dtype or "float32", self.folder)

    def _end_epoch(self, state: TrainState, model: nn.Module, criterion: SetCriterion, postprocess: PostProcess,
                   cost: dict[str, float]) -> None:
        """Evaluation, checkpoints and log; then the next epoch is in progress."""
        training, epoch, steps = self.options.training, state.epoch, state.step
        record: dict[str, Any] = {"train_" + name: value for name, value in state.meters.means().items()}
        is_best = False
        if (epoch + 1) % training.eval_interval == 0 or epoch + 1 == training.epochs:
            averaged = state.ema.module if state.ema is not None and epoch >= training.ema_epoch else model
            record |= self._evaluation_record(averaged, criterion, postprocess)
            is_best = state.note_ap(record[AP][0])
        record |= {"epoch": epoch, "n_parameters": self.trained_parameters,
                   "seconds": round(time.time() - self.start_time, 1)} | cost
        finished = FinishedEpoch(record, is_best)
        state.epoch, state.step, state.meters = epoch + 1, 0, Meters()
        self._save(state, finished)
        if is_main():
            self._copy_latest(finished)
            self._log(finished)
            skipped = round(record["train_skipped_images"] * steps)
            best_ap = f", best val AP {state.best_ap:.3f}" if state.best_ap >= 0 else ""
            logger.info("epoch %d: loss %.3f%s%s", epoch, record["train_loss"], best_ap,
                        f"; {skipped} unreadable images skipped" if skipped else "")

    def _evaluation_record(self, model: nn.Module, criterion: SetCriterion, postprocess: PostProcess) -> dict[str, Any]:
        """The log's entries of an evaluation, the same on every process."""
        evaluation = self._evaluate(model, criterion, postprocess)
        entries = None
        if is_main():
            summary = summarize(self.val_set.coco, evaluation.detections, self.options.evaluation)
            log_summary(summary, self.run_options.per_class)
            entries = log_entries(summary)
        return {f"test_{name}": loss for name, loss in evaluation.losses.items()} | all_gather(entries)[0]

    def _evaluate(self, model: nn.Module, criterion: SetCriterion | None, postprocess: PostProcess) -> Evaluation:
        return evaluate(model, criterion, postprocess, self.val_loader, self.device, amp_dtype=self.amp_dtype,
                        max_batches=self.run_options.max_batches)

    def _summarize_best(self, model: nn.Module, postprocess: PostProcess) -> None:
        """summary.md of the best checkpoint."""
        best = self.folder / BEST
        barrier()  # the main process may still be writing it
        if not all(all_gather(best.is_file())):  # the run was resumed in another folder, and found no better one
            return
        load_weights(model, read_checkpoint(best), ema=self.options.training.use_ema)
        evaluation = self._evaluate(model, None, postprocess)
        if is_main():
            from reports.conditions import conditions
            from reports.summary import PICTURES, write_summary  # importing matplotlib takes a second

            how = conditions(self.options, self.amp_dtype, self.run_options.fix_size, self.run_options.max_batches)
            facts = {"checkpoint": best, "config": self.folder / "config.py", "data": self.data.root}
            summary = summarize(self.val_set.coco, evaluation.detections, self.options.evaluation)
            logger.info("%s", write_summary(self.folder, summary, self.val_set.folder, self.folder / "log.txt", facts,
                                            checksum(model.state_dict()), how))
            self.loggers.text("summary", (self.folder / "summary.md").read_text(encoding="utf-8"))
            for path in (self.folder / name for name in PICTURES):
                if path.is_file():
                    self.loggers.picture(path.stem, path)

    def _is_stale(self, state: TrainState) -> bool:
        patience = self.options.training.early_stop
        return patience is not None and state.stale_evaluations >= patience

    def _batches_left(self, state: TrainState) -> int:
        """How many batches the rest of the epoch has."""
        left, limit = len(self.train_loader), self.run_options.max_batches
        return left if limit is None else min(left, max(limit - state.step, 0))

    def _save(self, state: TrainState, finished: FinishedEpoch | None = None) -> None:
        """finished: the epoch that has just ended, for a checkpoint between two epochs."""
        state.seconds = time.time() - self.start_time
        content = state.state_dict() | {"config": self.options.to_dict(), "class_names": self.class_names}
        if is_main():
            write_checkpoint(content | (finished.entries() if finished else {}), self.folder / LATEST)

    def _copy_latest(self, finished: FinishedEpoch) -> None:
        """Gives checkpoint.pth of a finished epoch its other names."""
        number, training = finished.record["epoch"], self.options.training
        if finished.is_best:
            copy_checkpoint(self.folder / LATEST, self.folder / BEST)
        aps = {epoch: logged_ap(record) for epoch, record in self.log.epochs().items() if epoch < number}
        before, now = (best_epochs(known, training.keep_best) for known in (aps, aps | {number: finished.ap}))
        if number in now or (number + 1) % training.save_checkpoint_interval == 0:
            copy_checkpoint(self.folder / LATEST, self._numbered(number))
        for epoch in before - now:
            if (epoch + 1) % training.save_checkpoint_interval:
                self._numbered(epoch).unlink(missing_ok=True)

    def _numbered(self, epoch: int) -> Path:
        return self.folder / f"checkpoint{epoch:04}.pth"

    def _log(self, finished: FinishedEpoch) -> None:
        self.log.append(finished.record)
        names = Rules.of(self.val_set.coco, self.options.evaluation).stat_names
        self.loggers.scalars(epoch_scalars(finished.record, names), finished.record["epoch"])


def ap_of(best: Path) -> float:
    """The val AP that a best checkpoint's training had reached with it; -inf if there is no such file or no AP."""
    value = read_checkpoint(best).get("best") if best.is_file() else -math.inf
    if not isinstance(value, int | float):
        raise UserError(f"{best} is not the best checkpoint of a training: move it out of the way")
    return value


def compare_config(saved: dict[str, Any], options: Options, source: str) -> None:
    """Warns of what has changed since a checkpoint was written. Raises UserError if the training cannot continue."""
    changed = changed_keys(saved, options)
    fixed = ["onecyclelr"] + ["epochs"] * options.training.onecyclelr  # the rates of a cycle depend on its length
    for key in fixed:
        if key in changed:
            old, new = changed[key]
            raise UserError(f"{source}: a training with {key}={old} cannot be resumed with {new}, because its learning "
                            f"rates follow from it; keep {key}={old}, or start another training from it with "
                            "--pretrain_model_path")
    kept = {key: changed.pop(key) for key in KEPT_BY_OPTIMIZER if key in changed}
    if changed:
        logger.warning("%s was written with another config, and goes on with the new values: %s", source,
                       ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items()))
    if kept:
        logger.warning("%s was written with another config, and goes on with the old values, which the optimizer's "
                       "state holds: %s; --pretrain_model_path starts a training with new ones", source,
                       ", ".join(f"{key} {old!r}, not {new!r}" for key, (old, new) in kept.items()))


def step_cost(seconds: float, steps: int, device: torch.device) -> dict[str, float]:
    """Log entries on the `steps` batches that took `seconds`: mean seconds per batch, and the peak memory of this
    process so far (CPU) or of its tensors (GPU)."""
    return {"step_seconds": round(seconds / max(steps, 1), 4), "peak_memory_mb": round(peak_memory(device))}


def checkpoint_size(model: nn.Module, ema: bool) -> int:
    """Approximate bytes: weights, two AdamW moments of the trained ones, and the moving average."""
    total, trained = count_parameters(model)
    return 4 * (total * (2 if ema else 1) + 2 * trained)


def epoch_scalars(record: dict[str, Any], stat_names: Sequence[str]) -> dict[str, float]:
    """The numbers of an epoch's line in the log, by paths such as "train/loss" and "coco/AP"; COCO's -1, nothing to
    measure, is none."""
    scalars = {name.replace("_", "/", 1): value for name, value in record.items() if isinstance(value, float)}
    return scalars | {f"coco/{name}": value for name, value in zip(stat_names, record.get(AP, []))
                      if value >= 0}
