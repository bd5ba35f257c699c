"""Idle OpenMP threads that soon sleep. Import it before torch, whose OpenMP reads this when it is loaded.

By default GNU's OpenMP lets a thread that waits spin for 300,000 rounds, some milliseconds. Where another program wants
the same cores, the others' threads spin instead of working, and a training step takes many times as long. Much fewer
rounds than these slow a step down where nothing else runs (docs/benchmarks/recipes.md).
"""
import os

SPIN_COUNT = "GOMP_SPINCOUNT"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault(SPIN_COUNT, "10000")
