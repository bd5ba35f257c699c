import torch

from models.structures import FlatFeatures
from util.nested_tensor import NestedTensor


def make(shapes, masks):
    maps = [NestedTensor(torch.randn(len(mask), 3, *shape), mask) for shape, mask in zip(shapes, masks, strict=True)]
    positions = [torch.randn_like(m.tensors) for m in maps]
    level_embed = torch.randn(len(shapes), 3)
    return maps, positions, level_embed, FlatFeatures.flatten(maps, positions, level_embed)


def partly_valid(height, width, rows, columns):
    mask = torch.ones(1, height, width, dtype=torch.bool)
    mask[:, :rows, :columns] = False
    return mask


def test_flatten():
    """Finest level first, row by row."""
    shapes = [(4, 6), (2, 3)]
    masks = [partly_valid(4, 6, 2, 5), partly_valid(2, 3, 1, 3)]
    maps, positions, level_embed, features = make(shapes, masks)
    assert features.tokens.shape == features.pos.shape == (1, 30, 3)
    assert features.shapes == shapes and features.level_start == [0, 24, 30]
    for level, (height, width) in enumerate(shapes):
        for row in range(height):
            for column in range(width):
                token = features.level_start[level] + row * width + column
                assert torch.equal(features.tokens[0, token], maps[level].tensors[0, :, row, column])
                expected = positions[level][0, :, row, column] + level_embed[level]
                assert torch.equal(features.pos[0, token], expected)
                assert features.padding[0, token] == masks[level][0, row, column]
    torch.testing.assert_close(features.valid_ratios, torch.tensor([[[5 / 6, 0.5], [1.0, 0.5]]]))  # (width, height)


def test_positions_without_level_embedding():
    masks = [partly_valid(2, 3, 2, 3), partly_valid(1, 2, 1, 1)]
    maps, positions, level_embed, features = make([(2, 3), (1, 2)], masks)
    plain = FlatFeatures.flatten(maps, positions)
    torch.testing.assert_close(plain.pos[:, :6], features.pos[:, :6] - level_embed[0])
    torch.testing.assert_close(plain.pos[:, 6:], features.pos[:, 6:] - level_embed[1])
    assert torch.equal(plain.tokens, features.tokens) and torch.equal(plain.valid_ratios, features.valid_ratios)


def test_some_levels():
    shapes = [(4, 6), (2, 3), (1, 2)]
    maps, positions, level_embed, features = make(
        shapes, [partly_valid(4, 6, 2, 5), partly_valid(2, 3, 1, 3), partly_valid(1, 2, 1, 1)])
    for levels in ([0, 2], [1], [0, 1, 2]):
        ours = features.select(levels)
        expected = FlatFeatures.flatten([maps[i] for i in levels], [positions[i] for i in levels], level_embed[levels])
        assert ours.shapes == expected.shapes and ours.level_start == expected.level_start
        for name in ("tokens", "pos", "padding", "valid_ratios"):
            assert torch.equal(getattr(ours, name), getattr(expected, name)), name


def test_reference_points():
    """A token's centre in the unpadded image, as (x, y), scaled to the unpadded part of every level."""
    *_, features = make([(4, 6), (2, 3)], [partly_valid(4, 6, 2, 5), partly_valid(2, 3, 1, 3)])
    points = features.reference_points()
    assert points.shape == (1, 30, 2, 2)
    token = 1 * 6 + 4  # row 1, column 4 of the first level
    torch.testing.assert_close(points[0, token, 0], torch.tensor([4.5 / 6, 1.5 / 4]))
    torch.testing.assert_close(points[0, token, 1], torch.tensor([4.5 / 5 * 1, 1.5 / 2 * 0.5]))
    token = 24 + 2  # row 0, column 2 of the second level
    torch.testing.assert_close(points[0, token, 0], torch.tensor([2.5 / 3 * 5 / 6, 0.5 / 1 * 0.5]))
    torch.testing.assert_close(points[0, token, 1], torch.tensor([2.5 / 3, 0.5 / 2]))


def test_reference_points_follow_the_type_of_the_model():
    maps = [NestedTensor(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))]
    features = FlatFeatures.flatten(maps, [maps[0].tensors], torch.randn(1, 3, dtype=torch.float64))
    assert features.valid_ratios.dtype == features.reference_points().dtype == torch.float64


def test_with_tokens():
    *_, features = make([(2, 2)], [partly_valid(2, 2, 2, 2)])
    replaced = features.with_tokens(features.tokens + 1)
    assert torch.equal(replaced.tokens, features.tokens + 1)
    assert replaced.pos is features.pos and replaced.shapes is features.shapes
