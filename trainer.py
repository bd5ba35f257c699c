"""A training from its first epoch, or from where it stopped, to its last."""
import argparse
import logging
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from datasets.coco import CocoDetection, check_num_classes, class_names
from datasets.coco_eval import STATS, CocoEvaluator
from datasets.loaders import eval_loader, train_loader, worker_crash_as_user_error
from datasets.transforms import largest_train_shape, padding_for, train_transforms, val_transforms
from engine import evaluate, train_one_epoch
from measure.memory import peak_memory
from measure.model_cost import count_parameters
from measure.step_cost import Batch, find_batch_size, worst_batch
from util.checkpoint import copy_checkpoint, load_weights, read_checkpoint, write_checkpoint
from util.config import Config
from util.distributed import all_gather, barrier, is_main, rank, world_size
from util.errors import UserError
from util.integers import ceil_div
from util.logger import setup_logging
from util.metrics import LogFile, Meters
from util.optim import MovingAverage, advance_scheduler, build_optimizer, build_scheduler
from util.options import Options
from util.pretrained import load_pretrained
from util.run_folder import prepare_folder, record_run, require_space
from util.signals import StopRequest
from util.train_state import TrainState

logger = logging.getLogger(__name__)
DEBUG_BATCHES = 16


class Trainer:
    """One run of main.py that trains: epochs, evaluations, checkpoints and logs in `folder`.

    args are main.py's; amp_dtype None means full precision.
    """

    def __init__(self, args: argparse.Namespace, config: Config, options: Options, folder: Path, device: torch.device,
                 amp_dtype: torch.dtype | None):
        self.args, self.config, self.options, self.folder = args, config, options, folder
        self.device, self.amp_dtype = device, amp_dtype
        options.data.pad_multiple = padding_for(options.data, device)
        self.latest = folder / "checkpoint.pth"
        self.resume = self._which_checkpoint()

    def run(self, model: nn.Module, criterion: nn.Module, postprocess: nn.Module) -> int:
        """Trains to the last epoch. Returns the exit code: 0, or 128 + signal if one asked to stop."""
        optim = self.options.training
        self._prepare_folder(model)
        self._open_data()
        if self.args.find_batch_size:
            self._fit_batches(model, criterion)
        self._build_loaders()
        state = self._build_state(model)
        if torch.distributed.is_initialized():
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            wrapped = DistributedDataParallel(model, device_ids=device_ids,
                                              find_unused_parameters=self.args.find_unused_params)
        else:
            wrapped = model
        self._announce(model)
        stop = StopRequest()
        while state.epoch < optim.epochs and not self._is_stale(state):
            self.loader.batch_sampler.set_epoch(state.epoch, state.step)
            batches = first_batches(self.loader) if self.args.debug else self.loader
            start = time.perf_counter(), state.step
            with worker_crash_as_user_error(self.loader):
                finished = train_one_epoch(wrapped, criterion, batches, state, optim, self.device, self.folder,
                                           amp_dtype=self.amp_dtype, stop=stop, save=self._save)
            self._save(state)  # before the evaluation, so that nothing can take this epoch's work away
            if not finished or any(all_gather(stop.requested)):
                logger.warning("stopped in epoch %d after step %d; --resume auto goes on from there",
                               state.epoch, state.step)
                return stop.exit_code
            cost = step_cost(*start, state.step, self.device)
            self._end_epoch(state, model, criterion, postprocess, cost)
        if self._is_stale(state):
            logger.info("early stop: no better val AP in %d evaluations", state.stale)
        best = f"; best val AP {state.best:.3f}" if state.best >= 0 else ""
        logger.info("finished in %s%s", timedelta(seconds=round(time.time() - self.start)), best)
        self._summarize(model, postprocess)
        return 0

    def _which_checkpoint(self) -> str | None:
        """What --resume means, or an error where a training would be overwritten."""
        found = all_gather(self.latest.is_file())
        if len(set(found)) > 1:
            raise UserError(f"some processes see {self.latest} and others do not: nodes must share the output folder")
        if self.args.resume == "auto":
            return str(self.latest) if found[0] else None
        if self.args.resume is None and found[0]:
            raise UserError(f"{self.folder} already holds a training. Pass --resume auto to go on with it, "
                            "--resume FILE, or another --output_dir")
        return self.args.resume

    def _prepare_folder(self, model: nn.Module) -> None:
        if is_main():
            prepare_folder(self.folder)
            optim = self.options.training
            numbered = optim.epochs // optim.save_checkpoint_interval
            require_space(self.folder, checkpoint_size(model, optim.use_ema), numbered + 3)  # latest, best, the next
            setup_logging(rank(), self.folder)
        barrier()

    def _open_data(self) -> None:
        args, data = self.args, self.options.data
        self.train_set = CocoDetection(args.coco_path, "train", train_transforms(data, args.fix_size),
                                       args.strict_data, args.seed)
        self.val_set = CocoDetection(args.coco_path, "val", val_transforms(data, args.fix_size))
        check_num_classes(data.num_classes, self.val_set.coco, f"the val set of {args.coco_path}")
        self.class_names = class_names(self.train_set.coco)

    def _fit_batches(self, model: nn.Module, criterion: nn.Module) -> None:
        """Splits the images of an optimizer step into the largest batches that fit into memory."""
        data, optim = self.options.data, self.options.training
        images = data.batch_size * optim.grad_accum_steps
        sizes = [(image["width"], image["height"]) for image in self.train_set.coco.dataset["images"]]
        boxes = max(len(target["boxes"]) for target in self.train_set.boxes.values())

        def batch(size: int) -> Batch:
            return worst_batch(size, largest_train_shape(data, sizes, size, self.args.fix_size), boxes,
                               data.num_classes)

        fits = find_batch_size(model, criterion, batch, self.device, self.amp_dtype, most=images)
        data.batch_size = max(size for size in range(1, fits + 1) if images % size == 0)
        optim.grad_accum_steps = images // data.batch_size
        self.config.update(batch_size=data.batch_size, grad_accum_steps=optim.grad_accum_steps)
        logger.info("batches of %d images fit into memory: batch_size=%d grad_accum_steps=%d", fits, data.batch_size,
                    optim.grad_accum_steps)

    def _build_loaders(self) -> None:
        args, data = self.args, self.options.data
        optim = self.options.training
        self.loader = train_loader(self.train_set, data.batch_size, args.num_workers, args.seed,
                                   optim.epoch_steps and optim.epoch_steps * optim.grad_accum_steps,
                                   data.pad_multiple)
        self.val_loader = eval_loader(self.val_set, data.eval_batch_size, args.num_workers)

    def _build_state(self, model: nn.Module) -> TrainState:
        optim = self.options.training
        if self.args.pretrain_model_path and self.resume is None:
            load_pretrained(model, self.args.pretrain_model_path, self.args.finetune_ignore, self.class_names,
                            no_object=self.options.loss.classification == "softmax")
        optimizer = build_optimizer(model, optim)
        accumulate = optim.grad_accum_steps
        steps_per_epoch = ceil_div(len(self.loader), accumulate)
        state = TrainState(model, optimizer, build_scheduler(optimizer, optim, steps_per_epoch),
                           GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16),
                           MovingAverage(model, optim.ema_decay) if optim.use_ema else None,
                           images_per_step=self.options.data.batch_size * world_size())
        if self.resume is not None:
            checkpoint = read_checkpoint(self.resume)
            self._compare_config(checkpoint)
            state.load_state_dict(checkpoint, self.resume)
            logger.info("resumed %s: epoch %d, step %d", self.resume, state.epoch, state.step)
        else:
            state.epoch = self.args.start_epoch
        advance_scheduler(state.scheduler, state.epoch * steps_per_epoch + ceil_div(state.step, accumulate))
        return state

    def _compare_config(self, checkpoint: dict) -> None:
        """Warns of what has changed since the checkpoint, and refuses what cannot go on."""
        saved = checkpoint.get("config", {})
        changed = {key: (saved[key], value) for key, value in self.config.to_dict().items()
                   if key in saved and saved[key] != value}
        if "epochs" in changed and self.options.training.onecyclelr:
            old, new = changed["epochs"]
            raise UserError(f"{self.resume}: a one-cycle schedule of {old} epochs cannot be resumed with {new}; keep "
                            f"epochs={old}, or start another training from it with --pretrain_model_path")
        if changed:
            listed = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items())
            logger.warning("%s was written with another config: %s. Optimizer and schedule go on with the values that "
                           "the checkpoint holds", self.resume, listed)

    def _announce(self, model: nn.Module) -> None:
        self.start = time.time()
        self.parameters = count_parameters(model)
        if not is_main():
            return
        record_run(self.folder, self.config, vars(self.args))
        self.log = LogFile(self.folder / "log.txt")
        self.board = SummaryWriter(str(self.folder / "tensorboard"))
        logger.info("%d train and %d val images, %d classes; %.2f M parameters, %.2f M trained; %s, %s; output in %s",
                    len(self.train_set), len(self.val_set), len(self.class_names), self.parameters[0] / 1e6,
                    self.parameters[1] / 1e6, self.device, self.amp_dtype or "float32", self.folder)

    def _end_epoch(self, state: TrainState, model: nn.Module, criterion: nn.Module, postprocess: nn.Module,
                   cost: dict[str, float]) -> None:
        """Evaluation, log and checkpoints; then the next epoch is in progress."""
        optim, epoch = self.options.training, state.epoch
        record = {"train_" + name: value for name, value in state.meters.means().items()}
        copies = []
        if (epoch + 1) % optim.eval_interval == 0 or epoch + 1 == optim.epochs:
            averaged = state.ema is not None and epoch >= optim.ema_epoch
            record |= self._evaluate(state.ema.module if averaged else model, criterion, postprocess)
            ap = record["test_coco_eval_bbox"][0]
            if ap < 0:  # no box to measure with: the latest is as good as any
                copies.append("checkpoint_best.pth")
            elif ap > state.best:
                state.best, state.stale = ap, 0
                copies.append("checkpoint_best.pth")
            else:
                state.stale += 1
        if (epoch + 1) % optim.save_checkpoint_interval == 0:
            copies.append(f"checkpoint{epoch:04}.pth")
        if is_main():
            record |= {"epoch": epoch, "n_parameters": self.parameters[1],
                       "seconds": round(time.time() - self.start, 1)} | cost
            self.log.append(record)
            write_scalars(self.board, record, epoch)
            skipped = round(record["train_skipped_images"] * state.step)
            best = f", best val AP {state.best:.3f}" if state.best >= 0 else ""
            logger.info("epoch %d: loss %.3f%s%s", epoch, record["train_loss"], best,
                        f"; {skipped} unreadable images skipped" if skipped else "")
        state.epoch, state.step, state.meters = epoch + 1, 0, Meters()
        self._save(state, copies)

    def _evaluate(self, model: nn.Module, criterion: nn.Module, postprocess: nn.Module) -> dict:
        """The log's entries of an evaluation, the same on every process."""
        evaluator = CocoEvaluator(self.val_set.coco)
        losses = self._detect(model, criterion, postprocess, evaluator)
        stats = report(evaluator, self.args.per_class) if is_main() else None
        return {f"test_{k}": v for k, v in losses.items()} | {"test_coco_eval_bbox": all_gather(stats)[0]}

    def _detect(self, model: nn.Module, criterion: nn.Module | None, postprocess: nn.Module,
                evaluator: CocoEvaluator) -> dict[str, float]:
        with worker_crash_as_user_error(self.val_loader):
            return evaluate(model, criterion, postprocess, self.val_loader, evaluator, self.device,
                            amp_dtype=self.amp_dtype, max_batches=DEBUG_BATCHES if self.args.debug else None)

    def _summarize(self, model: nn.Module, postprocess: nn.Module) -> None:
        """summary.md: what the best checkpoint can do."""
        best = self.folder / "checkpoint_best.pth"
        barrier()  # the main process may still be writing it
        if not all(all_gather(best.is_file())):  # a run that was resumed elsewhere, and found no better one
            return
        load_weights(model, read_checkpoint(best), ema=self.options.training.use_ema)
        evaluator = CocoEvaluator(self.val_set.coco)
        self._detect(model, None, postprocess, evaluator)
        if is_main():
            from reports.summary import write_summary  # importing matplotlib takes a second

            evaluator.summarize()
            facts = {"checkpoint": best, "config": self.folder / "config.py", "data": self.args.coco_path}
            logger.info("%s", write_summary(self.folder, evaluator, self.val_set.folder, self.folder / "log.txt",
                                            facts))

    def _is_stale(self, state: TrainState) -> bool:
        patience = self.options.training.early_stop
        return patience is not None and state.stale >= patience

    def _save(self, state: TrainState, copies: list[str] | None = None) -> None:
        content = state.state_dict() | {"config": self.config.to_dict(), "class_names": self.class_names}
        if is_main():
            write_checkpoint(content, self.latest)
            for name in copies or []:
                copy_checkpoint(self.latest, self.folder / name)


def report(evaluator: CocoEvaluator, per_class: bool) -> list[float]:
    """Prints the tables; returns COCO's twelve numbers."""
    stats = evaluator.summarize()
    if stats[0] < 0:
        logger.warning("no ground-truth boxes to measure AP with: it is given as -1")
    logger.info("COCO evaluation of %d images\n%s", len(evaluator.detections), evaluator.table.rstrip())
    if per_class:
        logger.info("by class\n%s", evaluator.per_class())
    return stats


def step_cost(start: float, first: int, last: int, device: torch.device) -> dict[str, float]:
    """Log entries on the batches first .. last of an epoch, which began at `start`: mean seconds of one, and the peak
    memory of this process so far (CPU) or of its tensors (GPU)."""
    seconds = (time.perf_counter() - start) / max(last - first, 1)
    return {"step_seconds": round(seconds, 4), "peak_memory_mb": round(peak_memory(device))}


def checkpoint_size(model: nn.Module, ema: bool) -> int:
    """Bytes, about: weights, two AdamW moments of the trained ones, and the moving average."""
    total, trained = count_parameters(model)
    return 4 * (total * (2 if ema else 1) + 2 * trained)


def first_batches(loader: DataLoader) -> list:
    """For --debug: the first batches of what is left of an epoch."""
    return [batch for batch, _ in zip(loader, range(DEBUG_BATCHES))]


def write_scalars(board: SummaryWriter, record: dict, epoch: int) -> None:
    for name, value in record.items():
        if isinstance(value, float):
            board.add_scalar(name.replace("_", "/", 1), value, epoch)
    for name, value in zip(STATS, record.get("test_coco_eval_bbox", [])):
        board.add_scalar(f"coco/{name}", value, epoch)
    board.flush()
