"""A detector as one compiled graph, and on a GPU as one launch per image size.

B batch, H W the sides of a batch.
"""
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.detector import Detector
from util.errors import UserError, nearest
from util.nested_tensor import NestedTensor

STEP = 64  # px: sides are padded to multiples of it, so that few sizes occur
MOST = 8  # sizes whose recordings are kept
WARM_UP = 3  # runs before a recording: libraries allocate and choose their kernels in the first ones

Run = Callable[[Tensor, Tensor], dict[str, Tensor]]  # images [B, 3, H, W] and mask [B, H, W] to outputs


class CompiledDetector:
    """Runs a detector of models.inference, compiled by `backend` of torch.compile for all sizes at once, in the first
    call. Images are padded to multiples of STEP, so boxes differ a little from those without. Raises UserError for a
    backend that torch does not have.

    On a GPU the work for each padded size is recorded as a CUDA graph in its first call (some runs of the detector)
    and replayed from then on; the recordings of the `most` sizes that were used last are kept. The weights must stay as
    they are. record: what makes the recording.
    """

    def __init__(self, model: Detector, backend: str = "inductor", most: int = MOST,
                 record: Callable[[Run, Tensor, Tensor], Run] | None = None):
        require_compiler(backend)
        self.run: Run = torch.compile(_Flat(model), dynamic=True, fullgraph=True, backend=backend)
        self.most = most
        self.record = record or (record_graph if next(model.parameters()).is_cuda else None)
        self._recordings: OrderedDict[tuple, Run] = OrderedDict()

    def __len__(self) -> int:
        """Recordings that are kept."""
        return len(self._recordings)

    def __call__(self, images: Tensor | list[Tensor]) -> dict[str, Tensor]:
        """The detector's outputs for normalised images [B, 3, H, W] of one size, or [3, H_i, W_i] of any."""
        samples = padded_to_steps(images)
        assert samples.mask is not None
        if self.record is None:
            return self.run(samples.tensors, samples.mask)
        key = tuple(samples.tensors.shape)
        if key not in self._recordings:
            while len(self._recordings) >= self.most:  # before the new one needs memory
                self._recordings.popitem(last=False)
            self._recordings[key] = self.record(self.run, samples.tensors, samples.mask)
        self._recordings.move_to_end(key)
        return self._recordings[key](samples.tensors, samples.mask)


class _Flat(nn.Module):
    """A detector whose inputs are tensors."""

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor) -> dict[str, Any]:
        return self.model(NestedTensor(images, mask))


def require_compiler(backend: str) -> None:
    """Raises UserError where torch.compile has no such backend."""
    backends = torch.compiler.list_backends(exclude_tags=())
    if backend not in backends:
        raise UserError(f"torch.compile has no backend {backend!r}.{nearest(backend, backends)}")


def padded_to_steps(images: Tensor | list[Tensor], step: int = STEP) -> NestedTensor:
    """Images with zeros below and to the right, up to multiples of `step`, and always a mask: with it all sizes are the
    same graph."""
    samples = NestedTensor.from_list(images, step)
    mask = samples.tensors.new_zeros(samples.tensors[:, 0].shape, dtype=torch.bool)
    return NestedTensor(samples.tensors, mask if samples.mask is None else samples.mask)


def record_graph(run: Run, images: Tensor, mask: Tensor) -> Run:
    """A CUDA graph of `run` for inputs of these shapes. What it returns is valid after further calls, too."""
    own_images, own_mask = images.clone(), mask.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run(own_images, own_mask)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(own_images, own_mask)

    def replay(images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        own_images.copy_(images)
        own_mask.copy_(mask)
        graph.replay()
        return {name: value.clone() for name, value in outputs.items()}

    return replay
