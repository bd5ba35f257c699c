"""Activations that configs name."""
import torch.nn.functional as F

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}
