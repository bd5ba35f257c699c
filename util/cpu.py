"""The processors and the memory of this process."""
import ctypes
import os
import sys


def available_cpus() -> int:
    """Processors that this process may use, as limited by Slurm, a container or taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Makes glibc reuse the memory of freed tensors.

    By default it returns large blocks to the system, and each new activation has to wait for zeroed pages.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        m_mmap_max, m_trim_threshold = -4, -1
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
