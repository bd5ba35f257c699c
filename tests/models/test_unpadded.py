"""Images without padding: nothing is masked, what follows from their sizes is computed once, the results are the same.
"""
import pytest
import torch

from models import build_model
from models import remembered as module
from models.inference import for_inference
from models.remembered import Memory
from tests.inference.detectors import CONFIGS, spread_scores
from util.nested_tensor import NestedTensor


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    memory = Memory(module.MOST)
    monkeypatch.setattr(module, "MEMORY", memory)
    return memory


@pytest.fixture
def make_detector(tiny_dino, tiny_sdetr):
    def make_detector(name):
        torch.manual_seed(0)
        model = build_model(CONFIGS[name](tiny_dino, tiny_sdetr))[0].eval().requires_grad_(False)
        spread_scores(model)
        return model

    return make_detector


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def masked(batch):
    """The same images with a mask that says where the padding is, even if there is none."""
    padded = NestedTensor.from_list([*batch, torch.zeros(3, 1, 1)])
    return NestedTensor(padded.tensors[:-1], padded.mask[:-1])


def assert_same(found, wanted):
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-5 * float(wanted[name].abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mask_without_padding_changes_nothing(make_detector, name):
    model = make_detector(name)
    batch = images((64, 96), (64, 96))
    assert_same(model(batch), model(masked(batch)))


BATCHES = [images((64, 96)), images((96, 64), (96, 64)), images((64, 96), (60, 70)), images((64, 96))]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_that_were_before_do_not_matter(make_detector, name, order, memory, monkeypatch):
    """Padded and unpadded batches of several sizes, in both orders, against a memory that keeps nothing."""
    models = [make_detector(name)]
    models.append(for_inference(models[0]))
    batches = BATCHES[order]
    with torch.inference_mode():
        remembered = [model(batch) for batch in batches for model in models]
        assert len(memory)
        monkeypatch.setattr(module, "MEMORY", Memory(0))
        anew = [model(batch) for batch in batches for model in models]
    for found, wanted in zip(remembered, anew, strict=True):
        assert torch.equal(found["pred_logits"], wanted["pred_logits"])
        assert torch.equal(found["pred_boxes"], wanted["pred_boxes"])


def test_a_second_image_of_a_size_needs_no_more_memory(make_detector, memory):
    model = make_detector("lite_dino")
    model(images((64, 96)))
    before = len(memory)
    model(images((64, 96), (64, 96)))
    assert len(memory) == before > 0
    for side in range(64, 256, 32):
        model(images((64, side)))
    assert len(memory) == module.MOST


def test_other_weights_give_other_results(make_detector):
    """Nothing that depends on weights is remembered."""
    model, batch = make_detector("lite_dino"), images((64, 96))
    before = model(batch)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state | {"transformer.level_embed": state["transformer.level_embed"].flip(0)})
    assert (model(batch)["pred_logits"] - before["pred_logits"]).abs().max() > 1e-3
    model.load_state_dict(state)
    assert torch.equal(model(batch)["pred_logits"], before["pred_logits"])


def test_the_dtype_of_a_model_can_change(make_detector):
    model, batch = make_detector("lite_dino"), images((64, 96))
    before = model(batch)
    wide = model.double()([image.double() for image in batch])
    assert wide["pred_logits"].dtype == torch.float64
    torch.testing.assert_close(wide["pred_logits"].float(), before["pred_logits"], rtol=0, atol=1e-4)
    assert torch.equal(model.float()(batch)["pred_logits"], before["pred_logits"])


def test_training_without_padding_learns_what_it_learns_with_a_mask(make_detector):
    """Also after an inference has filled the memory."""
    model, batch = make_detector("lite_dino").requires_grad_(True), images((64, 96), (64, 96))
    with torch.inference_mode():
        model(batch)
    gradients = []
    for samples in (batch, masked(batch)):
        model.zero_grad()
        outputs = model(samples)
        (outputs["pred_logits"].sigmoid().sum() + outputs["pred_boxes"].sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5 * float(gradients[1].abs().max()))
