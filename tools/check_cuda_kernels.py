"""Compiles the CUDA kernels and checks their registers: python tools/check_cuda_kernels.py [--record]

A kernel fails if it spills registers to memory, if it uses more registers than models/ops/src/cuda/budget.json allows,
or if it is missing there; so does a budget without its kernel. --record rewrites that file. Needs nvcc and c++filt,
but no GPU; without nvcc it passes.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import run_tool, tool_parser
from util.errors import UserError
from util.files import write_text

SOURCE = Path(__file__).resolve().parents[1] / "models/ops/src/cuda"
BUDGET = SOURCE / "budget.json"
ARCHITECTURES = "sm_80", "sm_90"
WEIGHTS = "KeyIsValue", "DistinctKey", "Given"  # enum class Weights of arguments.cuh, which ptxas prints as numbers

Budget = dict[str, dict[str, int]]  # registers by architecture and kernel


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports about a kernel; stack and spills in bytes."""
    architecture: str
    name: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def main(args: argparse.Namespace) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        print("no nvcc: the CUDA kernels are not checked")
        return
    if shutil.which("c++filt") is None:
        raise UserError("c++filt is not found: install the package binutils")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        jobs = [(nvcc, file, architecture, Path(folder)) for file in sorted(SOURCE.glob("*.cu"))
                for architecture in ARCHITECTURES]
        kernels = [kernel for found in pool.map(lambda job: compile_kernels(*job), jobs) for kernel in found]
    if args.record:
        write_text(BUDGET, json.dumps(budget_of(kernels), indent=1, sort_keys=True) + "\n")
        print(f"wrote the registers of {len(kernels)} kernels to {BUDGET}")
    budget = json.loads(BUDGET.read_text(encoding="utf-8")) if BUDGET.is_file() else {}
    problems = find_problems(kernels, budget)
    print(report(kernels, problems))
    found = budget_of(kernels)
    gone = [name for architecture, names in budget.items() for name in names
            if name not in found.get(architecture, {})]
    if gone:
        raise UserError(f"{BUDGET} has kernels that no longer exist: {', '.join(sorted(gone))}; --record rewrites it")
    if problems:
        raise UserError(f"{len(problems)} kernels exceed {BUDGET}; --record accepts registers, but no spills")


def find_nvcc() -> str | None:
    """nvcc in CUDA_HOME if that is set, else on the path or in the usual place."""
    home = os.environ.get("CUDA_HOME")
    candidates = [f"{home}/bin/nvcc"] if home else [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((path for path in candidates if path and Path(path).is_file()), None)


def compile_kernels(nvcc: str, file: Path, architecture: str, folder: Path) -> list[Kernel]:
    done = subprocess.run([nvcc, "-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas", "-v", "-cubin",
                           "-o", str(folder / f"{file.stem}.{architecture}.cubin"), str(file)],
                          capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{file.name} does not compile for {architecture}:\n{done.stdout}{done.stderr}")
    readable = subprocess.run(["c++filt"], input=done.stdout + done.stderr, capture_output=True, text=True, check=True)
    kernels = parse_ptxas(readable.stdout)
    if not kernels:
        raise UserError(f"no kernels found in ptxas's output for {file.name}:\n{readable.stdout}")
    return kernels


def parse_ptxas(text: str) -> list[Kernel]:
    """The kernels in ptxas's demangled output."""
    pattern = re.compile(r"Compiling entry function '(?P<name>.+?)' for '(?P<architecture>\w+)'.*?"
                         r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
                         r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers", re.DOTALL)
    return [Kernel(m["architecture"], short_name(m["name"]), int(m["registers"]), int(m["stack"]), int(m["stores"]),
                   int(m["loads"])) for m in pattern.finditer(text)]


def short_name(demangled: str) -> str:
    """Without namespaces, return type and arguments."""
    name = re.sub(r"\w+::\(anonymous namespace\)::", "", demangled)
    name = re.sub(r"\(Weights\)(\d+)", lambda match: WEIGHTS[int(match[1])], name)
    return re.sub(r"^void |\([^()]*\)$", "", name)


def budget_of(kernels: Iterable[Kernel]) -> Budget:
    budget: Budget = {}
    for kernel in kernels:
        budget.setdefault(kernel.architecture, {})[kernel.name] = kernel.registers
    return budget


def find_problems(kernels: Iterable[Kernel], budget: Budget) -> dict[Kernel, str]:
    problems = {}
    for kernel in kernels:
        allowed = budget.get(kernel.architecture, {}).get(kernel.name)
        if kernel.stack or kernel.spill_stores or kernel.spill_loads:
            problems[kernel] = (f"spills: {kernel.spill_stores} bytes stored, {kernel.spill_loads} loaded, "
                                f"{kernel.stack} of stack")
        elif allowed is None:
            problems[kernel] = "not in the budget"
        elif kernel.registers > allowed:
            problems[kernel] = f"more than its budget of {allowed} registers"
    return problems


def report(kernels: list[Kernel], problems: dict[Kernel, str]) -> str:
    """A table of the kernels with problems, and the largest number of registers by architecture."""
    lines = [f"{kernel.architecture}  {kernel.registers:3} registers  {kernel.name}  {problem}"
             for kernel, problem in problems.items()]
    for architecture in sorted({kernel.architecture for kernel in kernels}):
        registers = [kernel.registers for kernel in kernels if kernel.architecture == architecture]
        lines.append(f"{architecture}: {len(registers)} kernels, at most {max(registers)} registers")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("--record", action="store_true", help="write the registers to budget.json")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    run_tool(main, parser.parse_args())
