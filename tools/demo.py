"""From nothing to a trained, evaluated and drawn detector: python tools/demo.py (or `make demo`).

Generates a small detection set in data/demo, trains config/demo/lite_dino.py on it through main.py, evaluates the best
checkpoint, and leaves pictures, curves and tables in outputs/demo. A second call resumes where the first one stopped.
"""
import subprocess
import sys

from common import ROOT, run_tool, tool_parser
from datasets.synthetic import generate

DATA, OUTPUT, CONFIG = "data/demo", "outputs/demo", "config/demo/lite_dino.py"


def run(*command: str) -> None:
    """Runs a program of this project; its failure ends the demo."""
    print("$ python", *command, flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            pass  # the program got the signal too: it finishes its step and writes a checkpoint
    if process.returncode:
        sys.exit(process.returncode)


def main() -> None:
    print(f"generating the data set in {DATA}", flush=True)
    generate(ROOT / DATA, progress=True)
    common = ["main.py", "-c", CONFIG, "--coco_path", DATA, "--output_dir", OUTPUT]
    run(*common, "--resume", "auto", "--num_workers", "0")  # two cores: a worker would slow the training
    run(*common, "--eval", "--resume", f"{OUTPUT}/checkpoint_best.pth", "--per_class", "--save_results", "--save_log")
    run("tools/draw_results.py", OUTPUT, "--coco_path", DATA)
    print(f"\n{OUTPUT}/detections.png   val images with ground truth and detections\n"
          f"{OUTPUT}/curves.png       loss, AP and learning rate by epoch\n"
          f"{OUTPUT}/eval/table.txt   COCO's numbers, and AP by class")


if __name__ == "__main__":
    tool_parser(__doc__).parse_args()
    run_tool(main)
