import torch

from models.layers.mlp import MLP


def test_relu_between_the_layers_only():
    mlp = MLP(3, 5, 2, num_layers=3)
    first, second, third = mlp.layers
    assert [(layer.in_features, layer.out_features) for layer in mlp.layers] == [(3, 5), (5, 5), (5, 2)]
    x = torch.randn(4, 7, 3)
    torch.testing.assert_close(mlp(x), third(second(first(x).clamp(min=0)).clamp(min=0)))


def test_one_layer():
    mlp = MLP(3, 5, 2, num_layers=1)
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(x), mlp.layers[0](x))
