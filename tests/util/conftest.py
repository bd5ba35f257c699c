"""Small models with random weights, and checkpoints of them, for the tests that load them."""
import copy

import pytest
import torch
from torch import nn

from models import build_model
from util.checkpoint import write_checkpoint
from util.config import Config

# Two of the backbone's stages, so that a model is 4 MB.
SMALL = {"return_interm_indices": [1], "num_feature_levels": 2}


@pytest.fixture(scope="module")
def built():
    return {}


@pytest.fixture
def build(tiny_config, built):
    def build(seed=0, **changes):
        key = (seed, str(changes))
        if key not in built:
            torch.manual_seed(seed)
            model = build_model(Config({**tiny_config, **SMALL, **changes}))[0]
            # Heads start from constants: random numbers tell a loaded tensor from a fresh one.
            for parameter in model.parameters():
                nn.init.normal_(parameter)
            built[key] = model
        return copy.deepcopy(built[key])
    return build


@pytest.fixture
def save(tmp_path):
    def save(content, name="model.pth"):
        write_checkpoint(content, tmp_path / name)
        return tmp_path / name
    return save
