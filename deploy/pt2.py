"""PyTorch's own format: torch.export.load reads it, without this project."""
import io
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from deploy.graph import DetectionGraph, trace
from inference.artifact import KEY, Artifact
from util.files import atomic_write

SUFFIX = ".pt2"
DTYPES = ("float32", "float16", "bfloat16")
FROM_FLOAT32 = ()
SAMPLERS = ("grid_sample", "native", "gather")


def outputs(path: Path) -> list[Path]:
    return [path]


def write(graph: DetectionGraph, artifact: Artifact, path: Path,
          calibration: Iterable[tuple[Tensor, Tensor]] | None = None) -> list[Path]:
    """See deploy."""
    buffer = io.BytesIO()
    torch.export.save(trace(graph, artifact), buffer, extra_files={KEY: artifact.to_json()})
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return [path]
