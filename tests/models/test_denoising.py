import pytest
import torch
from torch import nn
from torchvision.ops import box_convert

from models.denoising import Denoising, DenoisingMeta, prepend
from models.structures import Queries

CLASSES = 5


@pytest.fixture
def label_enc():
    """Shows the label in the content: row i of the identity for class i."""
    return nn.Embedding.from_pretrained(torch.eye(CLASSES + 1))


def target(*labels, box=(0.5, 0.5, 0.2, 0.3)):
    return {"labels": torch.tensor(labels, dtype=torch.int64), "boxes": torch.tensor(box).expand(len(labels), 4)}


def many(count, box=(0.5, 0.5, 0.2, 0.3)):
    return [target(*(torch.arange(count) % CLASSES).tolist(), box=box)]


def grouped(x, meta):
    """[B, G * 2T, ...] to [B, G, positive or negative, T, ...]."""
    return x.unflatten(1, (meta.num_groups, 2, meta.group_size // 2))


@pytest.mark.parametrize("number, counts, groups, size", [
    (100, (3,), 33, 6), (100, (1,), 100, 2), (100, (3, 7, 0), 14, 14), (4, (4,), 1, 8), (4, (9,), 1, 18),
    (0, (2,), 1, 4),
])
def test_number_of_groups(label_enc, number, counts, groups, size):
    targets = [target(*[1] * n) for n in counts]
    queries, meta = Denoising(number, 1.0, 0.5).prepare(targets, label_enc, CLASSES)
    assert meta == DenoisingMeta(groups, size) and meta.num_queries == groups * size
    assert queries.content.shape == (len(counts), groups * size, CLASSES + 1)
    assert queries.box_logits.shape == (len(counts), groups * size, 4)


@pytest.mark.parametrize("targets", [[target()], [target(), target()]], ids=len)
def test_no_targets(label_enc, targets):
    assert Denoising(100, 1.0, 0.5).prepare(targets, label_enc, CLASSES) is None


def test_layout_without_noise(label_enc):
    """Every group repeats all targets, once as positive and once as negative queries."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.1, 0.6]])
    targets = [{"labels": torch.tensor([3, 1]), "boxes": boxes}, target(4)]
    queries, meta = Denoising(6, 0.0, 0.0).prepare(targets, label_enc, CLASSES)
    assert (meta.num_groups, meta.group_size) == (3, 4)
    content, places = grouped(queries.content, meta), grouped(queries.box_logits.sigmoid(), meta)
    for group in range(3):
        for part in range(2):
            assert content[0, group, part].argmax(-1).tolist() == [3, 1]
            torch.testing.assert_close(places[0, group, part], boxes)
            assert content[1, group, part, 0].argmax() == 4


def test_images_with_fewer_targets_are_padded_with_zeros(label_enc):
    targets = [target(1, 2, 3), target(4), target()]
    queries, meta = Denoising(6, 1.0, 0.5).prepare(targets, label_enc, CLASSES)
    used = (grouped(queries.content, meta) != 0).any(-1)
    for image, count in enumerate((3, 1, 0)):
        assert used[image, :, :, :count].all() and not used[image, :, :, count:].any()
        assert not grouped(queries.box_logits, meta)[image, :, :, count:].any()


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_box_noise(label_enc, scale):
    """A positive corner moves by up to half a side, a negative one by half to a whole side; both ways on each axis."""
    torch.manual_seed(0)
    box = torch.tensor([0.5, 0.5, 0.2, 0.3])
    queries, meta = Denoising(2000, scale, 0.0).prepare(many(20), label_enc, CLASSES)
    places = grouped(queries.box_logits.sigmoid(), meta)[0]
    moved = (box_convert(places, "cxcywh", "xyxy") - box_convert(box, "cxcywh", "xyxy")) / box[2:].repeat(2)
    # Corners may swap places; such boxes have lost a side to the clamp.
    whole = (places[..., 2:] > 0.002).all(-1)
    assert whole[:, 0].float().mean() > 0.9 and whole[:, 1].float().mean() > 0.4
    for part, (low, high) in enumerate([(0.0, 0.5), (0.5, 1.0)]):
        distance = moved[:, part][whole[:, part]].abs() / scale
        assert distance.min() >= low - 1e-3 and distance.max() <= high + 1e-3
        assert distance.min() < low + 0.02 and distance.max() > high - 0.02
        signs = moved[:, part][whole[:, part]].sign()
        assert all(set(column.tolist()) == {-1.0, 1.0} for column in signs.T)
    torch.testing.assert_close(moved[:, 0][whole[:, 0]].abs().mean() / scale, torch.tensor(0.25), atol=0.02, rtol=0)


def test_noised_boxes_stay_in_the_image(label_enc):
    torch.manual_seed(0)
    queries, _ = Denoising(400, 1.0, 0.0).prepare(many(20, box=(0.05, 0.95, 0.1, 0.1)), label_enc, CLASSES)
    assert queries.box_logits.isfinite().all()
    corners = box_convert(queries.box_logits.sigmoid(), "cxcywh", "xyxy")
    assert corners.min() >= -0.002 and corners.max() <= 1.002  # centre and sides are clamped at 0.001


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_label_noise(label_enc, ratio):
    """Half of the ratio is replaced, by any class: one in CLASSES by the same."""
    torch.manual_seed(0)
    queries, _ = Denoising(5000, 0.0, ratio).prepare(many(20), label_enc, CLASSES)
    labels = queries.content[0].argmax(-1)
    original = (torch.arange(20) % CLASSES).repeat(len(labels) // 20)
    changed = (labels != original).float().mean().item()
    assert changed == pytest.approx(ratio / 2 * (1 - 1 / CLASSES), abs=0.015 if ratio else 0)
    assert labels.max() == CLASSES - 1
    counts = labels[labels != original].bincount(minlength=CLASSES)
    assert not ratio or counts.min() > 0.8 * counts.float().mean()


def test_noise_differs_between_groups_and_calls(label_enc):
    make = Denoising(10, 1.0, 0.5)
    queries, meta = make.prepare(many(2), label_enc, CLASSES)
    places = grouped(queries.box_logits, meta)[0, :, 0]
    assert not torch.isclose(places[0], places[1]).any()
    assert not torch.equal(queries.box_logits, make.prepare(many(2), label_enc, CLASSES)[0].box_logits)


def test_targets_are_not_changed(label_enc):
    targets = many(3)
    before = {name: x.clone() for name, x in targets[0].items()}
    Denoising(10, 1.0, 1.0).prepare(targets, label_enc, CLASSES)
    assert all(torch.equal(targets[0][name], x) for name, x in before.items())


def test_label_embedding_is_trained():
    label_enc = nn.Embedding(CLASSES + 1, 4)
    queries, _ = Denoising(10, 1.0, 0.0).prepare([target(2)], label_enc, CLASSES)
    queries.content.sum().backward()
    assert label_enc.weight.grad.any(-1).tolist() == [False, False, True, False, False, False]


def test_prepend():
    meta = DenoisingMeta(num_groups=2, group_size=4)
    noised, matched = (Queries(torch.randn(1, n, 3), torch.randn(1, n, 4)) for n in (8, 5))
    joined = prepend(noised, matched, meta)
    assert torch.equal(joined.content, torch.cat([noised.content, matched.content], 1))
    assert torch.equal(joined.box_logits, torch.cat([noised.box_logits, matched.box_logits], 1))
    assert joined.attn_mask.shape == (13, 13) and joined.attn_mask.dtype == torch.bool
    for query in range(13):
        for other in range(13):
            if other >= 8:
                hidden = False  # the matched queries are for all to see
            elif query >= 8:
                hidden = True  # they would see the ground truth
            else:
                hidden = query // 4 != other // 4
            assert joined.attn_mask[query, other] == hidden
