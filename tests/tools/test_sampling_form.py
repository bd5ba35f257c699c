import pytest
import torch

from models.layers.deform_attn import KeyAwareDeformAttn, MSDeformAttn
from tools.sampling_form import SamplingForm, sampling_form

FORMS = [(8, 4, False), (8, 4, True), (8, 1, False), (4, 4, True), (4, 4, False), (6, 4, False), (2, 2, True),
         (16, 2, False), (1, 4, True), (8, 3, False)]


def tensors(kind, heads, points, same_loc, drift=0.0):
    """The tensors of an attention over four levels; training has moved its biases by about `drift` pixels."""
    torch.manual_seed(0)
    state = {f"x.{name}": value.clone() for name, value in kind(48, 4, heads, points, same_loc).state_dict().items()}
    state["x.sampling_offsets.bias"] += drift * torch.randn_like(state["x.sampling_offsets.bias"])
    return state


@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize("kind", [MSDeformAttn, KeyAwareDeformAttn])
@pytest.mark.parametrize("heads, points, same_loc", FORMS)
def test_biases_tell_the_form(kind, heads, points, same_loc, drift):
    found = sampling_form(tensors(kind, heads, points, same_loc, drift), "x.", 4)
    assert found == SamplingForm(heads, points, same_loc, sure=True)


@pytest.mark.parametrize("kind", [MSDeformAttn, KeyAwareDeformAttn])
def test_without_numbers_eight_heads_are_assumed(kind):
    state = {name: value.to("meta") for name, value in tensors(kind, 8, 4, False).items()}
    assert sampling_form(state, "x.", 4) == SamplingForm(8, 4, False)
    shared = {name: value.to("meta") for name, value in tensors(kind, 8, 4, True).items()}
    assert sampling_form(shared, "x.", 4, points=4) == SamplingForm(8, 4, True)


def test_biases_that_tell_nothing():
    state = tensors(KeyAwareDeformAttn, 8, 4, False)
    state["x.sampling_offsets.bias"] = torch.randn(256, generator=torch.Generator().manual_seed(1))
    assert sampling_form(state, "x.", 4) == SamplingForm(8, 4, False)
