"""Builds the operators into the module lite_detr_ops.

    python setup.py build install          or          pip install --no-build-isolation ./models/ops

With nvcc and a CUDA build of torch where a GPU is seen, for the CPU and CUDA, otherwise for the CPU. FORCE_CUDA=1
builds for CUDA where no GPU is seen; TORCH_CUDA_ARCH_LIST picks the GPUs, by default all that this nvcc knows.
"""
import glob
import os
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

HERE = Path(__file__).parent.resolve()
CPU_FLAGS = ["-O3", "-fopenmp", "-ffp-contract=fast", "-Wno-psabi"]


def sources(*patterns: str) -> list[str]:
    # Relative, as setuptools wants them; this file may be run from elsewhere.
    return sorted(os.path.relpath(path) for pattern in patterns for path in glob.glob(str(HERE / "src" / pattern)))


def cuda_home() -> str | None:
    """The CUDA toolkit's folder: as torch finds it, or around the nvcc on the PATH, also behind a wrapper script."""
    nvcc = shutil.which("nvcc")
    candidates = [cpp_extension.CUDA_HOME, nvcc and str(Path(nvcc).resolve().parents[1]), "/usr/local/cuda"]
    for home in filter(None, candidates):
        if (Path(home) / "bin" / "nvcc").exists() and (Path(home) / "include" / "cuda_runtime_api.h").exists():
            return home
    return None


def cuda_architectures(nvcc: str) -> str:
    """Volta to the newest that nvcc knows, in the form of TORCH_CUDA_ARCH_LIST, with PTX for later ones."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    known = sorted(int(name.removeprefix("compute_")) for name in listed if name.removeprefix("compute_").isdigit())
    wanted = [arch for arch in (70, 75, 80, 86, 89, 90, 100, 120) if arch in known]
    return ";".join(f"{arch // 10}.{arch % 10}" for arch in wanted) + "+PTX"


def extension():
    options = dict(name="lite_detr_ops", extra_link_args=["-fopenmp"])
    cpu_sources = sources("*.cpp", "cpu/*.cpp")
    wanted = os.environ.get("FORCE_CUDA") == "1"
    home = cuda_home() if torch.version.cuda else None
    if wanted and home is None:
        raise SystemExit("FORCE_CUDA=1 needs nvcc with its headers and a torch that was built with CUDA")
    if home is None or not (wanted or torch.cuda.is_available()):
        return cpp_extension.CppExtension(sources=cpu_sources, extra_compile_args=CPU_FLAGS, **options)
    cpp_extension.CUDA_HOME = home
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures(f"{home}/bin/nvcc")
    built = cpp_extension.CUDAExtension(
        sources=cpu_sources + sources("cuda/*.cu"), define_macros=[("WITH_CUDA", None)],
        extra_compile_args={"cxx": CPU_FLAGS, "nvcc": ["-O3"]}, **options)
    # The CUDA runtime is torch's own, loaded with it: a toolkit may lack the library's plain name.
    built.libraries = [name for name in built.libraries if name != "cudart"]
    return built


setup(name="lite_detr_ops", version="1.0", ext_modules=[extension()],
      cmdclass={"build_ext": cpp_extension.BuildExtension})
