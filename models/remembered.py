"""What follows from sizes alone, such as position encodings and anchors of images without padding, computed once.

One memory for the whole process, not part of any model: nothing of it is saved, copied or trained.
"""
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
MOST = 32  # results; a detector of four levels has about eight for each image size


class Memory:
    """The results that were used last, `most` of them, all on one device and of one dtype."""

    def __init__(self, most: int):
        self.most = most
        self._results: OrderedDict[tuple, Any] = OrderedDict()
        self._place: tuple[torch.device, torch.dtype] | None = None
        self._lock = threading.RLock()  # a result may be made of another

    def __len__(self) -> int:
        return len(self._results)

    def get(self, make: Callable[..., Any], sizes: tuple, device: torch.device, dtype: torch.dtype) -> Any:
        key = make, sizes
        with self._lock:
            if self._place != (device, dtype):
                self._results.clear()
                self._place = device, dtype
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
            with torch.inference_mode(False), torch.no_grad():  # a training may use it later
                result = make(*sizes, device=device, dtype=dtype)
            if _is_plain(result):
                self._results[key] = result
                while len(self._results) > self.most:
                    self._results.popitem(last=False)
            return result


MEMORY = Memory(MOST)


def remembered(make: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator of a function of sizes (numbers, or tuples of them) with the keywords device and dtype, which returns
    a tensor or a tuple of tensors. Nobody may change them in place.

    While a graph is made of a model (torch.export, torch.compile, CUDA graphs), the function is part of that graph.
    """
    @functools.wraps(make)
    def function(*sizes: Any, device: torch.device, dtype: torch.dtype) -> Result:
        if (torch.compiler.is_compiling() or torch.jit.is_tracing()
                or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())):
            return make(*sizes, device=device, dtype=dtype)
        return MEMORY.get(make, sizes, device, dtype)

    return function


def _is_plain(result: Any) -> bool:
    """Whether it holds numbers; those of a mode that only follows shapes mean nothing outside of it."""
    return all(type(x) is Tensor for x in (result if isinstance(result, tuple) else (result,)))
