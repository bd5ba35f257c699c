"""The attention with few operators is PyTorch's."""
import pytest
import torch
from torch import nn

from models.layers.attention import MultiheadAttention, additive

DIM, HEADS = 8, 2


@pytest.fixture
def both():
    """Ours and PyTorch's with the same weights, in float64."""
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(DIM, HEADS), nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    return ours.double(), theirs.double()


def inputs(shared):
    """Query, key and value of which some are one tensor."""
    query, key, value = (torch.randn(2, n, DIM, dtype=torch.float64, requires_grad=True) for n in (4, 5, 5))
    return {"none": (query, key, value), "query and key": (key, key, value), "key and value": (query, key, key),
            "all": (key, key, key)}[shared]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared", ["none", "query and key", "key and value", "all"])
def test_results_and_gradients(both, shared, masked, padded):
    given = inputs(shared)
    mask, padding = None, None
    if masked:
        mask = torch.zeros(given[0].shape[1], 5, dtype=torch.bool)
        mask[0, :3] = True
    if padded:
        padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    results, gradients = [], []
    for module in both:
        result = module(*given, key_padding_mask=padding, attn_mask=mask, need_weights=False)[0]
        results.append(result)
        asked = [*dict.fromkeys(given), *module.parameters()]
        gradients.append(torch.autograd.grad(result.square().sum(), asked))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_an_additive_mask(both):
    query, key, value = inputs("none")
    mask = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(*(module(query, key, value, attn_mask=mask, need_weights=False)[0] for module in both))


def test_weights_on_request(both):
    given = inputs("none")
    (ours, our_weights), (theirs, their_weights) = (module(*given) for module in both)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_weights, their_weights)
    assert our_weights.shape == (2, 4, 5)


def test_dropout_only_in_training():
    torch.manual_seed(0)
    attention, x = MultiheadAttention(DIM, HEADS, dropout=0.5), torch.randn(1, 6, DIM)
    first, second = (attention(x, x, x, need_weights=False)[0] for _ in range(2))
    assert not torch.equal(first, second)
    attention.eval()
    first, second = (attention(x, x, x, need_weights=False)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_additive():
    mask = torch.tensor([[True, False]])
    found = additive(mask, torch.bfloat16)
    assert found.dtype == torch.bfloat16 and found.tolist() == [[-torch.inf, 0]]
    assert additive(found, torch.float32) is found
