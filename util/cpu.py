"""Process settings for training on a CPU."""
import ctypes
import os
import sys


def set_environment() -> None:
    """Call before torch is imported: its OpenMP threads then sleep at a barrier instead of spinning.

    Data-loading processes share the cores; against spinning threads a step took several times as long on two cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Makes glibc reuse the memory of freed tensors.

    By default it returns every large block to the system, and each new activation pays for fresh zeroed pages.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        m_mmap_max, m_trim_threshold = -4, -1
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
