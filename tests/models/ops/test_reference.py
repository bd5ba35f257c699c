"""The operators in plain PyTorch against a loop over samples. Implementations are compared in test_functional.py."""
import math

import torch

from models.ops.reference import key_aware_weights, sample

SHAPES = [(3, 4), (2, 2)]


def bilinear(image, x, y):
    """The value at (x, y) px of image [H, W, D], centres of pixels at whole numbers, zeros outside."""
    total = torch.zeros(image.shape[-1], dtype=image.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += image[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def test_samples_are_bilinear_with_zeros_outside():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 16, 2, 3, generator=generator, dtype=torch.float64)
    locations = torch.rand(1, 5, 2, 2, 4, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    found = sample(value, SHAPES, locations)
    assert found.shape == (1, 2, 3, 5, 8)
    for level, (tokens, (height, width)) in enumerate(zip(value.split([12, 4], 1), SHAPES)):
        for head in range(2):
            image = tokens[0, :, head].view(height, width, 3)
            for query in range(5):
                for point in range(4):
                    x, y = locations[0, query, head, level, point].tolist()
                    wanted = bilinear(image, x * width - 0.5, y * height - 0.5)
                    torch.testing.assert_close(found[0, head, :, query, 4 * level + point], wanted)


def test_weights_are_the_softmax_of_scaled_products():
    query, keys = torch.randn(1, 5, 2, 4), torch.randn(1, 2, 4, 5, 8)
    wanted = (torch.einsum("bqmd,bmdqk->bmqk", query, keys) / 2).softmax(-1)
    torch.testing.assert_close(key_aware_weights(query, keys), wanted)
