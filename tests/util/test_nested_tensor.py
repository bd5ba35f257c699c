"""Padding of a batch, and the mask that tells it from the images."""
import pytest
import torch

from util.nested_tensor import NestedTensor, resize_mask


def test_images_are_padded_at_the_right_and_bottom():
    images = [torch.ones(3, 4, 7), 2 * torch.ones(3, 6, 5)]
    batch = NestedTensor.from_list(images)
    assert batch.tensors.shape == (2, 3, 6, 7) and batch.mask.shape == (2, 6, 7) and batch.mask.dtype == torch.bool
    for image, padded, mask in zip(images, batch.tensors, batch.mask, strict=True):
        height, width = image.shape[1:]
        assert torch.equal(padded[:, :height, :width], image)
        assert not mask[:height, :width].any()
        assert mask.sum() == 6 * 7 - height * width
        assert padded[:, mask].abs().sum() == 0


@pytest.mark.parametrize("multiple, shape", [(1, (33, 64)), (32, (64, 64)), (50, (50, 100))])
def test_sides_are_rounded_up_to_a_multiple(multiple, shape):
    batch = NestedTensor.from_list([torch.ones(3, 33, 40), torch.ones(3, 20, 64)], multiple)
    assert batch.tensors.shape[2:] == batch.mask.shape[1:] == shape
    assert (~batch.mask).sum((1, 2)).tolist() == [33 * 40, 20 * 64] and batch.tensors.sum() == 3 * (33 * 40 + 20 * 64)


def test_one_image_needs_no_padding():
    image = torch.rand(3, 5, 9)
    batch = NestedTensor.from_list([image])
    assert torch.equal(batch.tensors[0], image) and batch.mask is None


def test_images_of_one_size_need_no_padding():
    images = torch.rand(2, 3, 6, 8)
    for given in (images, list(images)):
        batch = NestedTensor.from_list(given, multiple=2)
        assert torch.equal(batch.tensors, images) and batch.mask is None
    assert NestedTensor.from_list(images, multiple=4).mask.sum() == 2 * 2 * 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtype_is_that_of_the_images(dtype):
    assert NestedTensor.from_list([torch.zeros(3, 2, 2, dtype=dtype)]).tensors.dtype == dtype


def test_to_moves_both_parts():
    batch = NestedTensor.from_list([torch.zeros(3, 2, 4), torch.zeros(3, 1, 4)]).to("meta")
    assert batch.tensors.device.type == batch.mask.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs CUDA")
def test_both_parts_are_pinned():
    batch = NestedTensor.from_list([torch.zeros(3, 2, 4), torch.zeros(3, 1, 4)]).pin_memory()
    assert batch.tensors.is_pinned() and batch.mask.is_pinned()


def test_masks_shrink_to_the_nearest_pixel():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :, 6:] = True
    mask[1, 4:] = True
    small = resize_mask(mask, (4, 4))
    assert small.dtype == torch.bool
    assert torch.equal(small, mask[:, ::2, ::2])


def test_masks_of_odd_sizes_keep_the_image_uncovered():
    mask = torch.ones(1, 75, 101, dtype=torch.bool)
    mask[:, :50, :60] = False
    small = resize_mask(mask, (10, 13))
    assert small.shape == (1, 10, 13)
    assert not small[0, 0, 0] and small[0, -1, -1]
    rows, columns = torch.arange(10) * 75 // 10, torch.arange(13) * 101 // 13
    assert torch.equal(small[0], mask[0][rows][:, columns])
