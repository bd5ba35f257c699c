"""Builds the operators into the module lite_detr_ops.

    python setup.py build install          or          pip install --no-build-isolation ./models/ops

With nvcc and a CUDA build of torch where a GPU is seen, for the CPU and CUDA, otherwise for the CPU. FORCE_CUDA=1
builds for CUDA or fails, also where no GPU is seen, FORCE_CUDA=0 for the CPU only; TORCH_CUDA_ARCH_LIST picks the
GPUs, by default the one that is seen, without one all that this nvcc and torch know.
"""
import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

HERE = Path(__file__).parent.resolve()
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler has none; torch then runs one thread
CPU_FLAGS = ["-O3", *OPENMP, "-ffp-contract=fast", "-Wno-psabi"]


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
    """Volta to the newest that nvcc and torch know, in the form of TORCH_CUDA_ARCH_LIST, with PTX for later ones."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    known = {int(name.removeprefix("compute_")) for name in listed if name.removeprefix("compute_").isdigit()}
    newest = max(map(int, re.findall(r"code=sm_(\d+)", torch.__config__.show())), default=max(known))
    targets = [arch for arch in (70, 75, 80, 86, 89, 90, 100, 120) if arch in known and arch <= newest]
    return ";".join(f"{arch // 10}.{arch % 10}" for arch in targets) + "+PTX"


def why_no_cuda(home: str | None) -> str | None:
    """What prevents a build for CUDA; None: nothing."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if home is None:
        return f"nvcc with its headers is not found: install the toolkit of CUDA {torch.version.cuda}, or set CUDA_HOME"
    version = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)", version)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return (f"{home}/bin/nvcc is of CUDA {release[1] if release else 'an unknown version'}, torch of CUDA "
                f"{torch.version.cuda}: install that toolkit, or set CUDA_HOME to it")
    return None


def extension():
    options = dict(name="lite_detr_ops", extra_link_args=OPENMP)
    cpu_sources = sources("*.cpp", "cpu/*.cpp")
    force = os.environ.get("FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        raise SystemExit(f"FORCE_CUDA={force} must be 0 or 1")
    home = cuda_home()
    problem = why_no_cuda(home)
    if problem and force == "1":
        raise SystemExit(f"FORCE_CUDA=1, but {problem}")
    if force == "0":
        problem = "FORCE_CUDA=0"
    elif not force and not torch.cuda.is_available():
        problem = "torch sees no GPU here; FORCE_CUDA=1 builds for CUDA nevertheless"
    if problem:
        print(f"lite_detr_ops is built for the CPU only: {problem}", file=sys.stderr)
        return cpp_extension.CppExtension(sources=cpu_sources, extra_compile_args=CPU_FLAGS, **options)
    cpp_extension.CUDA_HOME = home  # assigned from outside: torch reads its toolkit's folder there only
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        architectures = cuda_architectures(f"{home}/bin/nvcc")
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures  # assigned from outside: an environment variable
    built = cpp_extension.CUDAExtension(
        sources=cpu_sources + sources("cuda/*.cu"), define_macros=[("WITH_CUDA", None)],
        extra_compile_args={"cxx": CPU_FLAGS, "nvcc": ["-O3"]}, **options)
    # The CUDA runtime is torch's own, loaded with it: a toolkit may lack the library's plain name.
    libraries = [name for name in built.libraries if name != "cudart"]
    built.libraries = libraries  # assigned from outside: torch has no argument that leaves a library out
    return built


setup(name="lite_detr_ops", version="1.0", ext_modules=[extension()],
      cmdclass={"build_ext": cpp_extension.BuildExtension})
