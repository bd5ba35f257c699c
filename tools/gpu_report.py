"""The report of tools/gpu_check.sh, which calls this.

    python tools/gpu_report.py machine OUT_DIR          prints the machine and which packages are missing
    python tools/gpu_report.py report OUT_DIR PARTS     adds the steps and writes report.md; exit code 1 if one failed

PARTS holds steps.tsv (result, seconds and name of each step) and the tables of the steps, Markdown or text. Machine and
steps are in OUT_DIR/check.json too.
"""
import json
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from common import ROOT, run_tool, tool_parser
from util.errors import UserError
from util.files import write_text

FIELDS = ["name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"]
BUILD_TOOLS = ["setuptools", "wheel", "ninja"]


def missing_packages() -> list[str]:
    """Packages of the requirements files that this Python lacks; versions are not compared."""
    lines = [line for name in ("requirements.txt", "requirements-dev.txt")
             for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line[:1].isalpha()]
    return [name for name in [*(re.split(r"[<>=~! ]", line)[0] for line in lines), *BUILD_TOOLS] if not installed(name)]


def installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def describe_machine() -> dict[str, str]:
    machine = {"python": platform.python_version(), "system": platform.platform(),
               "missing packages": ", ".join(missing_packages()) or "none"}
    try:
        import torch
    except ImportError as error:
        return machine | {"torch": f"cannot be imported: {error}"}
    machine |= {"torch": torch.__version__, "torch's CUDA": torch.version.cuda or "none"}
    query = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return machine | {"nvidia-smi": f"no answer ({type(error).__name__})"}
    return machine | dict(zip(FIELDS, answer.splitlines()[0].split(", ")))


def write_report(out: Path, parts: Path) -> int:
    """Returns the exit code."""
    machine = json.loads((out / "check.json").read_text(encoding="utf-8"))["machine"]
    lines = [line.split("\t") for line in (parts / "steps.tsv").read_text(encoding="utf-8").splitlines()]
    steps = [{"result": result, "seconds": int(seconds), "name": name} for result, seconds, name in lines]
    write_text(out / "check.json", json.dumps({"machine": machine, "steps": steps}, indent=1) + "\n")
    failed = sum(step["result"] == "FAIL" for step in steps)
    verdict = f"{failed} of {len(steps)} steps failed" if failed else f"{len(steps)} steps, none failed"
    text = [f"# GPU check: {verdict}", "## Machine", "\n".join(f"- {key}: {value}" for key, value in machine.items()),
            "## Steps", "\n".join(f"- {s['result']} {s['name']} ({s['seconds']} s)" for s in steps)]
    for part in sorted([*parts.glob("*.md"), *parts.glob("*.txt")], key=lambda path: path.stat().st_mtime):
        table = part.read_text(encoding="utf-8").strip()
        text += [f"## {part.stem.replace('_', ', ')}", table if part.suffix == ".md" else f"```\n{table}\n```"]
    write_text(out / "report.md", "\n\n".join(text) + "\n")
    print(f"{verdict}; {out / 'report.md'}")
    return 1 if failed else 0


def main(task: str, out: Path, parts: Path | None = None) -> int:
    if task == "report":
        if parts is None:
            raise UserError("report needs PARTS, the folder with the steps and their tables")
        return write_report(out, parts)
    machine = describe_machine()
    write_text(out / "check.json", json.dumps({"machine": machine}, indent=1) + "\n")
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
    return 0


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("task", choices=("machine", "report"))
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("parts", type=Path, nargs="?", metavar="PARTS", help="for report")
    args = parser.parse_args()
    run_tool(main, args.task, args.out, args.parts)
