import pytest
import torch

from util.averaging import mean_weights
from util.errors import UserError


def mean(*states):
    return mean_weights((f"{name}.pth", state) for name, state in zip("abc", states))


def test_the_mean_in_the_type_of_the_weights():
    states = [{"w": torch.tensor([1.0, value]), "half": torch.tensor([value]).half(), "index": torch.tensor([3, 4]),
               "mask": torch.tensor(True)} for value in (1.0, 2.0, 6.0)]
    found = mean(*states)
    assert found["w"].tolist() == [1.0, 3.0] and found["half"].tolist() == [3.0]
    assert [found[key].dtype for key in states[0]] == [torch.float32, torch.float16, torch.int64, torch.bool]
    assert found["index"].tolist() == [3, 4] and found["mask"].item() is True
    assert states[0]["w"].tolist() == [1.0, 1.0]


def test_sums_do_not_lose_what_single_precision_would():
    big, small = 2.0**24, 1.0  # in float32, the sum of both is the big one
    found = mean(*({"w": torch.tensor([value])} for value in (big, small, small)))
    assert found["w"].item() == torch.tensor((big + 2) / 3, dtype=torch.float64).float().item()
    half = mean(*({"w": torch.tensor([60000.0]).half()} for _ in range(3)))  # whose sum is infinite in half precision
    assert half["w"].item() == torch.tensor(60000.0).half().item()


def test_equal_weights_stay_as_they_are_bit_for_bit():
    torch.manual_seed(0)
    weights = {"w": torch.randn(1000), "double": torch.randn(9, dtype=torch.float64)}
    found = mean(weights, weights, weights)
    assert torch.equal(found["w"], weights["w"])
    torch.testing.assert_close(found["double"], weights["double"], rtol=1e-15, atol=0)


@pytest.mark.parametrize("change, message", [
    ({"w": torch.ones(3)}, r"w is \(2,\) in a.pth and \(3,\) in b.pth"),
    ({"w": torch.ones(2).double()}, "w is torch.float32 in a.pth and torch.float64 in b.pth"),
    ({"i": torch.tensor([2])}, "i, which cannot be averaged, differs between a.pth and b.pth"),
    ({"x": torch.ones(2)}, r"x \(1 such tensors\) is only in b.pth: a.pth and b.pth are no checkpoints of the same"),
    ({"w": torch.tensor([1.0, float("nan")])}, "b.pth: w holds NaN"),
])
def test_weights_of_different_models_are_refused(change, message):
    state = {"w": torch.ones(2), "i": torch.tensor([1])}
    with pytest.raises(UserError, match=message):
        mean(state, state | change)
    with pytest.raises(UserError, match="w .* is only in a.pth"):
        mean(state, {"i": state["i"]})
