"""What the tests of loading ask of state dicts."""
import pytest
import torch

from util.errors import UserError


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def differing(state, other):
    assert state.keys() == other.keys()
    return sorted(key for key in state if not torch.equal(state[key], other[key]))


def refusal(load, *args, **kwargs):
    with pytest.raises(UserError) as error:
        load(*args, **kwargs)
    return str(error.value)


def fitting(key, *words):
    return any(word in key for word in words)
