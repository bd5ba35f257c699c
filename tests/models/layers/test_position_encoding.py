import math

import pytest
import torch

from models.layers.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine, box_sine_embedding
from util.nested_tensor import NestedTensor


def padded(height, width, sizes, dtype=torch.float32):
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for image, (h, w) in zip(mask, sizes, strict=True):
        image[:h, :w] = False
    return NestedTensor(torch.zeros(len(sizes), 3, height, width, dtype=dtype), mask)


def sine(angle, num_feats, temperature):
    """[sin, cos, sin, cos, ...] with one frequency a pair."""
    values = []
    for pair in range(num_feats // 2):
        scaled = angle / temperature ** (2 * pair / num_feats)
        values += [math.sin(scaled), math.cos(scaled)]
    return values


def test_sine_encodes_the_place_in_the_unpadded_image():
    encoding = PositionEmbeddingSine(6, temperature_h=20, temperature_w=30)(padded(4, 5, [(4, 5), (2, 3)]))
    assert encoding.shape == (2, 12, 4, 5)
    for image, (height, width) in enumerate([(4, 5), (2, 3)]):
        for row in range(height):
            for column in range(width):
                expected = (sine(2 * math.pi * (row + 1) / height, 6, 20)
                            + sine(2 * math.pi * (column + 1) / width, 6, 30))
                assert encoding[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-4)


def test_sine_is_finite_on_padding():
    assert PositionEmbeddingSine(4)(padded(6, 6, [(1, 1)])).isfinite().all()


@pytest.mark.parametrize("dtype, expected", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                                             (torch.float64, torch.float64)])
def test_sine_counts_beyond_half_precision(dtype, expected):
    """bfloat16 cannot tell 257 from 256."""
    encoding = PositionEmbeddingSine(4)(padded(1, 400, [(1, 400)], dtype))
    assert encoding.dtype == expected
    assert len(encoding[0, 4:, 0].T.unique(dim=0)) == 400


def test_learned():
    encode = PositionEmbeddingLearned(3)
    encoding = encode(padded(2, 4, [(2, 4), (1, 1)]))
    assert encoding.shape == (2, 6, 2, 4)
    for row in range(2):
        for column in range(4):
            expected = torch.cat([encode.col_embed.weight[column], encode.row_embed.weight[row]])
            assert torch.equal(encoding[0, :, row, column], expected)
            assert torch.equal(encoding[1, :, row, column], expected)


def test_learned_repeats_the_last_one_on_larger_maps():
    encode = PositionEmbeddingLearned(2, size=3)
    encoding = encode(padded(1, 5, [(1, 5)]))[0, :2, 0]
    assert torch.equal(encoding.T, encode.col_embed.weight[[0, 1, 2, 2, 2]])


def test_boxes():
    box = [0.1, 0.2, 0.7, 0.9]
    encoding = box_sine_embedding(torch.tensor(box, dtype=torch.float64).expand(2, 3, 4), num_feats=4)
    x, y, w, h = (sine(2 * math.pi * side, 4, 10000) for side in box)
    torch.testing.assert_close(encoding, torch.tensor([*y, *x, *w, *h], dtype=torch.float64).expand(2, 3, 16))


def test_centres_are_half_a_pixel_before_the_far_edges():
    x = padded(1, 8, [(1, 8)])
    edges, centres = (PositionEmbeddingSine(2, 10000, 10000, centres=c)(x)[0, 2:, 0] for c in (False, True))
    place = torch.arange(1, 9)
    torch.testing.assert_close(edges[0], torch.sin(2 * math.pi * place / 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(centres[0], torch.sin(2 * math.pi * (place - 0.5) / 8), atol=1e-5, rtol=0)
