"""Optimizer, learning-rate schedule and moving average, as the published configs describe them."""
import warnings

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from util.errors import UserError
from util.options import TrainingOptions


def param_groups(model: nn.Module, options: TrainingOptions) -> list[dict]:
    """Trainable parameters by learning rate and weight decay. `param_dict_type` chooses among the published forms:

    default: the backbone apart. ddetr_in_mmdet: also the parameters in lr_linear_proj_names (sampling offsets).
    large_wd: the backbone apart, and no weight decay for norms and biases.
    """
    def backbone(name: str) -> bool:
        return any(word in name for word in options.lr_backbone_names)

    def linear_proj(name: str) -> bool:
        return any(word in name for word in options.lr_linear_proj_names)

    def no_decay(name: str) -> bool:
        return "norm" in name or "bias" in name

    slow, decay = options.lr_backbone, options.weight_decay
    groups = {  # condition, learning rate, weight decay
        "default": [(lambda n: not backbone(n), options.lr, decay), (backbone, slow, decay)],
        "ddetr_in_mmdet": [(lambda n: not backbone(n) and not linear_proj(n), options.lr, decay),
                           (lambda n: backbone(n) and not linear_proj(n), slow, decay),
                           (linear_proj, options.lr * options.lr_linear_proj_mult, decay)],
        "large_wd": [(lambda n: not backbone(n) and not no_decay(n), options.lr, decay),
                     (lambda n: backbone(n) and no_decay(n), slow, 0.0),
                     (lambda n: backbone(n) and not no_decay(n), slow, decay),
                     (lambda n: not backbone(n) and no_decay(n), options.lr, 0.0)],
    }[options.param_dict_type]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [{"params": [p for n, p in named if belongs(n)], "lr": lr, "weight_decay": wd} for belongs, lr, wd in groups]


def build_optimizer(model: nn.Module, options: TrainingOptions, fused: bool = True) -> AdamW:
    """fused: one kernel for many parameters; otherwise torch chooses among its other forms."""
    return AdamW(param_groups(model, options), lr=options.lr, weight_decay=options.weight_decay,
                 fused=True if fused else None)


def build_scheduler(optimizer: AdamW, options: TrainingOptions, steps_per_epoch: int) -> LRScheduler:
    """Steps with the optimizer, steps_per_epoch times an epoch."""
    if options.onecyclelr:
        total = options.epochs * steps_per_epoch
        warmup = options.warmup_steps or 0.2 * total
        if warmup >= total:
            raise UserError(f"warmup_steps={warmup} must be less than the {total} steps of the whole training: lower "
                            "it, or raise epochs or epoch_steps")
        # The rate rises between the first step and the last one of the warm-up: a warm-up of one step does not rise.
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=total,
                          pct_start=warmup / total if warmup > 1 else 0.0)

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        drops = (sum(epoch >= drop for drop in options.lr_drop_list) if options.multi_step_lr
                 else epoch // options.lr_drop)
        return min(1.0, (step + 1) / (options.warmup_steps + 1)) * 0.1**drops

    return LambdaLR(optimizer, factor)


def advance_scheduler(scheduler: LRScheduler, steps: int) -> None:
    """Moves a new schedule to where `steps` optimizer steps lead. The optimizer may have been restored since: its
    groups hold the rates to start from."""
    scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    scheduler.last_epoch = steps
    for group, lr in zip(scheduler.optimizer.param_groups, _rates(scheduler)):
        group["lr"] = lr


def _rates(scheduler: LRScheduler) -> list[float]:
    with warnings.catch_warnings():  # torch wants get_lr to be called by step alone
        warnings.simplefilter("ignore")
        return scheduler.get_lr()


class MovingAverage(AveragedModel):
    """Exponential moving average of the weights; buffers are copied (an average would spoil index buffers).

    The decay of update n = 1, 2, ... is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage: in
    short trainings a constant one would keep much of the untrained weights to the end.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """In a few kernels for all tensors: AveragedModel copies the buffers, of which a frozen backbone has hundreds,
        one by one."""
        updates = int(self.n_averaged)  # it lies on the CPU
        if updates == 0:
            self.module.load_state_dict(model.state_dict())
        else:
            weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
            torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
            if buffers := list(model.buffers()):
                torch._foreach_copy_(list(self.module.buffers()), buffers)
        self.n_averaged += 1
