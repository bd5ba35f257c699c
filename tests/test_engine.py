"""The training step and the evaluation, in process."""
import json
import math

import pytest
import torch
from torch.amp import GradScaler

from datasets.coco import CocoDetection
from datasets.coco_eval import summarize
from datasets.loaders import eval_loader, train_loader
from datasets.transforms import train_transforms, val_transforms
from engine import NonFiniteError, evaluate, require_finite, train_one_epoch
from models import build_model
from models.matcher import HungarianMatcher
from util.metrics import Meters
from util.optim import MovingAverage, build_optimizer, build_scheduler
from util.options import TrainingOptions, parse_options
from util.train_state import TrainState

CPU = torch.device("cpu")


@pytest.fixture
def training(tiny_config, coco_root):
    """State, criterion, loader and post-processor of a small training."""
    def make(**options):
        torch.manual_seed(0)
        config = tiny_config | {"return_interm_indices": [1], "num_feature_levels": 2} | options  # two stages of it
        parsed = parse_options(config)
        model, criterion, post = build_model(config)
        dataset = CocoDetection(coco_root, "train", train_transforms(parsed.data))
        loader = train_loader(dataset, parsed.data.batch_size, 0, seed=0)
        optimizer = build_optimizer(model, parsed.training)
        state = TrainState(model, optimizer, build_scheduler(optimizer, parsed.training, len(loader)),
                           GradScaler("cpu", enabled=False),
                           MovingAverage(model, parsed.training.ema_decay) if parsed.training.use_ema else None)
        return state, criterion, loader, post["bbox"]
    return make


def run(state, criterion, loader, folder, epochs=1, amp_dtype=None, save=None, **options):
    for epoch in range(epochs):
        state.epoch, state.step = epoch, 0
        loader.batch_sampler.set_epoch(epoch)
        rule = TrainingOptions(**({"clip_max_norm": 0} | options))
        train_one_epoch(state.model, criterion, loader, state, rule, CPU, folder, amp_dtype=amp_dtype, save=save)


def test_training_lowers_the_loss(training, tmp_path):
    state, criterion, loader, _ = training(lr=1e-3, lr_backbone=1e-4, lr_drop=100, use_dn=False)
    means = []
    for _ in range(10):
        state.meters = Meters()
        run(state, criterion, loader, tmp_path)
        means.append(state.meters.means()["loss"])
    assert sum(means[-3:]) / 3 < 0.8 * means[0]


def test_meters_count_every_batch(training, tmp_path):
    state, criterion, loader, _ = training()
    run(state, criterion, loader, tmp_path)
    assert state.step == len(loader) == 4
    assert state.meters.counts["loss_ce"] == 4
    assert {"loss_bbox", "loss_giou_dn_0", "loss_ce_interm", "class_error", "lr"} <= set(state.meters.means())


def test_same_seed_same_weights(training, tmp_path):
    weights = []
    for _ in range(2):
        state, criterion, loader, _ = training()
        run(state, criterion, loader, tmp_path)
        weights.append(state.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_frozen_backbone_stays(training, tmp_path):
    state, criterion, loader, _ = training(lr_backbone=0.0)
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    run(state, criterion, loader, tmp_path)
    after = state.model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and not any(k.startswith("backbone") for k in changed)


def test_accumulation_steps_once_a_group(training, tmp_path):
    state, criterion, loader, _ = training()
    steps = []
    original = state.optimizer.step
    state.optimizer.step = lambda *a, **k: (steps.append(1), original(*a, **k))
    run(state, criterion, loader, tmp_path, grad_accum_steps=3)  # 4 batches: a group of 3 and one of 1
    assert len(steps) == 2


def test_accumulated_gradient_is_the_mean_of_the_batches(training, tmp_path):
    def first_gradient(accumulate):
        state, criterion, loader, _ = training(use_dn=False)
        batches = list(loader)[:2]
        grads = []
        state.optimizer.step = lambda *a, **k: grads.append(
            [p.grad.clone() for p in state.model.parameters() if p.grad is not None])
        rule = TrainingOptions(clip_max_norm=0, grad_accum_steps=accumulate)
        train_one_epoch(state.model, criterion, batches, state, rule, CPU, tmp_path)
        return grads
    (together,), (one, other) = first_gradient(2), first_gradient(1)
    for mean, a, b in zip(together, one, other):
        torch.testing.assert_close(mean, (a + b) / 2, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped(training, tmp_path):
    state, criterion, loader, _ = training()
    norms = []
    state.optimizer.step = lambda *a, **k: norms.append(float(torch.cat(
        [p.grad.flatten() for p in state.model.parameters() if p.grad is not None]).norm()))
    run(state, criterion, loader, tmp_path, clip_max_norm=0.1)
    assert norms and all(norm == pytest.approx(0.1, rel=5e-3) for norm in norms)


def test_ema_follows_the_weights(training, tmp_path):
    state, criterion, loader, _ = training(use_ema=True, ema_decay=0.5, lr=1e-2)
    start = state.model.transformer.level_embed.detach().clone()
    run(state, criterion, loader, tmp_path)
    averaged, weights = state.ema.module.transformer.level_embed, state.model.transformer.level_embed
    assert not torch.equal(averaged, weights)
    assert (averaged - weights).norm() < (start - weights).norm()


def test_amp_trains_in_bfloat16_with_float32_losses(training, tmp_path):
    state, criterion, loader, _ = training()
    run(state, criterion, loader, tmp_path, amp_dtype=torch.bfloat16)
    assert math.isfinite(state.meters.means()["loss"])
    assert all(p.dtype == torch.float32 for p in state.model.parameters())


def test_nan_weight_stops_at_the_step_and_names_the_images(training, tmp_path):
    state, criterion, loader, _ = training()
    with torch.no_grad():
        state.model.transformer.enc_output.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="image ids"):
        run(state, criterion, loader, tmp_path)
    record = json.loads((tmp_path / "non_finite_rank0.json").read_text())
    assert record["step"] == 0 and len(record["image_ids"]) == 2


@pytest.mark.parametrize("ids", [[3, 2**64 - 1], ["img_3", "img_4"]])
def test_images_with_ids_of_any_kind_are_named(ids, tmp_path):
    with pytest.raises(NonFiniteError, match="image ids"):
        require_finite("loss", math.nan, [{"image_id": i} for i in ids], 0, 1, tmp_path)
    assert json.loads((tmp_path / "non_finite_rank0.json").read_text())["image_ids"] == ids


def test_nan_loss_stops_at_the_step(training, tmp_path):
    state, criterion, loader, _ = training()
    forward, calls = criterion.forward, []

    def poisoned(outputs, targets):
        calls.append(1)
        losses = forward(outputs, targets)
        return losses | {"loss_giou": losses["loss_giou"] * float("nan")} if len(calls) == 3 else losses

    criterion.forward = poisoned
    with pytest.raises(NonFiniteError, match="the loss is nan in epoch 0, step 2"):
        run(state, criterion, loader, tmp_path)
    assert all(p.isfinite().all() for p in state.model.parameters())


def test_nan_cost_stops_at_the_step(training, tmp_path, monkeypatch, caplog):
    state, criterion, loader, _ = training()
    cost = HungarianMatcher._cost

    def poisoned(self, *args):
        return cost(self, *args) * float("nan") if state.step == 1 else cost(self, *args)

    monkeypatch.setattr(HungarianMatcher, "_cost", poisoned)
    with pytest.raises(NonFiniteError, match="the matching cost is nan in epoch 0, step 1"):
        run(state, criterion, loader, tmp_path)
    assert "NaN or infinite costs for the images" in caplog.text


def test_a_state_is_saved_within_the_epoch(training, tmp_path):
    state, criterion, loader, _ = training()
    saved = []
    run(state, criterion, loader, tmp_path, save=lambda s: saved.append(s.step), checkpoint_steps=1)
    assert saved == [1, 2, 3]  # the end of the epoch is the caller's
    state, criterion, loader, _ = training()
    run(state, criterion, loader, tmp_path, save=lambda s: saved.append(s.step), checkpoint_steps=1, grad_accum_steps=2)
    assert saved == [1, 2, 3, 2]


def test_a_state_with_a_nan_gradient_is_not_saved(training, tmp_path):
    state, criterion, loader, _ = training()
    state.model.transformer.level_embed.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError, match="gradient norm"):
        run(state, criterion, loader, tmp_path, save=lambda s: pytest.fail("saved"), checkpoint_steps=1)


def test_nan_gradient_is_reported_with_the_batch_that_made_it(training, tmp_path):
    state, criterion, loader, _ = training()
    poisoned = state.model.transformer.level_embed
    seen = []

    def poison(grad):
        seen.append(1)
        return grad * float("nan") if len(seen) == 2 else grad

    poisoned.register_hook(poison)
    loader.batch_sampler.set_epoch(0)
    second = [t["image_id"] for t in list(loader)[1][1]]
    with pytest.raises(NonFiniteError, match="gradient norm"):
        run(state, criterion, loader, tmp_path)
    record = json.loads((tmp_path / "non_finite_rank0.json").read_text())
    assert (record["image_ids"], record["step"]) == (second, 1)


def test_evaluation_sees_every_image_and_returns_losses(training, tiny_config, coco_root):
    state, criterion, _, post = training()
    dataset = CocoDetection(coco_root, "val", val_transforms(parse_options(tiny_config).data))
    for batch_size in (1, 3):
        evaluation = evaluate(state.model, criterion, post, eval_loader(dataset, batch_size, 0), CPU)
        assert sorted(evaluation.detections) == sorted(dataset.coco.getImgIds())
        assert evaluation.losses["loss"] > 0 and len(summarize(dataset.coco, evaluation.detections).stats) == 12
    assert evaluate(state.model, None, post, eval_loader(dataset, 4, 0), CPU).losses == {}


def test_evaluation_stops_after_max_batches(training, tiny_config, coco_root):
    state, _, _, post = training()
    dataset = CocoDetection(coco_root, "val", val_transforms(parse_options(tiny_config).data))
    evaluation = evaluate(state.model, None, post, eval_loader(dataset, 1, 0), CPU, max_batches=3)
    assert len(evaluation.detections) == 3


def test_parts_of_several_processes_make_one_evaluation(training, tiny_config, coco_root, monkeypatch):
    state, criterion, _, post = training()
    dataset = CocoDetection(coco_root, "val", val_transforms(parse_options(tiny_config).data))
    whole = evaluate(state.model, criterion, post, eval_loader(dataset, 1, 0), CPU)
    shares = {}
    for rank in range(2):
        monkeypatch.setattr("datasets.loaders.rank", lambda rank=rank: rank)
        monkeypatch.setattr("datasets.loaders.world_size", lambda: 2)
        with monkeypatch.context() as patch:
            patch.setattr("engine.all_gather", lambda item: shares.setdefault(type(next(iter(item))), []).append(item)
                          or [item])
            evaluate(state.model, criterion, post, eval_loader(dataset, 1, 0), CPU)
    monkeypatch.setattr("engine.all_gather", lambda item: shares[type(next(iter(item)))])
    merged = evaluate(state.model, criterion, post, eval_loader(dataset, 1, 0), CPU)
    assert merged.detections == whole.detections
    assert merged.losses == pytest.approx(whole.losses)
