"""Optimizer, learning-rate schedule and moving average, as the published configs describe them."""
import math
import warnings

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from util.errors import UserError
from util.options import TrainingOptions


def param_groups(model: nn.Module, options: TrainingOptions) -> list[dict]:
    """Trainable parameters grouped by learning rate and weight decay. `param_dict_type` chooses a published grouping:

    default: backbone and the rest. ddetr_in_mmdet: also the parameters in lr_linear_proj_names (sampling offsets).
    large_wd: backbone and the rest, both without weight decay for norms and biases.
    """
    def is_backbone(name: str) -> bool:
        return any(word in name for word in options.lr_backbone_names)

    def is_linear_proj(name: str) -> bool:
        return any(word in name for word in options.lr_linear_proj_names)

    def is_norm_or_bias(name: str) -> bool:
        return "norm" in name or "bias" in name

    lr, lr_backbone, decay = options.lr, options.lr_backbone, options.weight_decay
    groups = {  # condition, learning rate, weight decay
        "default": [(lambda n: not is_backbone(n), lr, decay), (is_backbone, lr_backbone, decay)],
        "ddetr_in_mmdet": [(lambda n: not is_backbone(n) and not is_linear_proj(n), lr, decay),
                           (lambda n: is_backbone(n) and not is_linear_proj(n), lr_backbone, decay),
                           (is_linear_proj, lr * options.lr_linear_proj_mult, decay)],
        "large_wd": [(lambda n: not is_backbone(n) and not is_norm_or_bias(n), lr, decay),
                     (lambda n: is_backbone(n) and is_norm_or_bias(n), lr_backbone, 0.0),
                     (lambda n: is_backbone(n) and not is_norm_or_bias(n), lr_backbone, decay),
                     (lambda n: not is_backbone(n) and is_norm_or_bias(n), lr, 0.0)],
    }[options.param_dict_type]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [{"params": [p for n, p in named if belongs(n)], "lr": rate, "weight_decay": wd}
            for belongs, rate, wd in groups]


def build_optimizer(model: nn.Module, options: TrainingOptions, fused: bool = True) -> AdamW:
    """fused: AdamW in one kernel for many parameters; otherwise torch chooses another implementation."""
    return AdamW(param_groups(model, options), lr=options.lr, weight_decay=options.weight_decay,
                 fused=True if fused else None)


def build_scheduler(optimizer: AdamW, options: TrainingOptions, steps_per_epoch: int) -> LRScheduler:
    """A schedule that steps with the optimizer, steps_per_epoch times per epoch."""
    if options.onecyclelr:
        total = options.epochs * steps_per_epoch
        warmup = options.warmup_steps or 0.2 * total
        if warmup >= total:
            raise UserError(f"warmup_steps={warmup} must be less than the {total} steps of the whole training: lower "
                            "it, or raise epochs or epoch_steps")
        # The rate rises from the first to the last step of the warm-up: a warm-up of one step cannot rise.
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=total,
                          pct_start=warmup / total if warmup > 1 else 0.0)

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        drops = (sum(epoch >= drop for drop in options.lr_drop_list) if options.multi_step_lr
                 else epoch // options.lr_drop)
        return min(1.0, (step + 1) / (options.warmup_steps + 1)) * 0.1**drops

    return LambdaLR(optimizer, factor)


def advance_scheduler(scheduler: LRScheduler, steps: int) -> None:
    """Advances a new schedule by `steps` optimizer steps. The optimizer may have been restored in between: the initial
    rates are those in its groups."""
    scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    scheduler.last_epoch = steps
    for group, lr in zip(scheduler.optimizer.param_groups, _rates(scheduler)):
        group["lr"] = lr


def _rates(scheduler: LRScheduler) -> list[float]:
    with warnings.catch_warnings():  # torch warns if anything but step() calls get_lr
        warnings.simplefilter("ignore")
        return [float(lr) for lr in scheduler.get_lr()]


class MovingAverage(AveragedModel):
    """Exponential moving average of the weights; buffers are copied (averages of index buffers make no sense).

    With a constant decay, the untrained weights would still count at the end of a short training. The decay of update
    n = 1, 2, ... is therefore at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage; or, with
    warmup_steps, decay * (1 - exp(-n / warmup_steps)), as in YOLOv5 and RT-DETR.
    """

    def __init__(self, model: nn.Module, decay: float, warmup_steps: int | None = None):
        super().__init__(model)
        self.decay, self.warmup_steps = decay, warmup_steps

    def decay_of(self, update: int) -> float:
        """Of update 1, 2, ...; update 0 copies the weights."""
        if self.warmup_steps is None:
            return min(self.decay, (1 + update) / (10 + update))
        return self.decay * (1 - math.exp(-update / self.warmup_steps))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """In a few kernels: AveragedModel copies buffers one by one, and a frozen backbone has hundreds of them."""
        updates = int(self.n_averaged)  # a CPU tensor
        if updates == 0:
            self.module.load_state_dict(model.state_dict())
        else:
            weight = 1 - self.decay_of(updates)
            torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
            if buffers := list(model.buffers()):
                torch._foreach_copy_(list(self.module.buffers()), buffers)
        self.n_averaged += 1
