"""The parts of tools/soak.py about the machine: a network that is cut, the operator's memory, a long run's needs."""
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from common import ROOT
from soaking import Run, Soak, differences

TIMEOUT = 0.3  # minutes that processes wait for each other (--dist_timeout)
LOST = 75
NODES, NETWORK, PORT = ("soak-a", "soak-b"), "10.213.77", 29571
STEPS, STEPS_PER_EPOCH, WARM_UP = 2000, 50, 0.3  # warm-up: a share of the run


def cut_links(soak: Soak) -> None:
    """Two nodes train together; their link is cut, both end in time, and with the link they go on to the end."""
    if not _make_nodes():
        soak.say("skipped: making network namespaces needs root and iproute2")
        return
    try:
        whole, out = soak.folder / "whole", soak.folder / "cut"
        codes = [run.wait(timeout=300) for run in _start_nodes(soak, whole)]
        soak.check(codes == [0, 0], None, f"with the link: exit codes {codes}")
        cuts: list[float] = []
        for lines in (1, 2):  # in the second epoch, and in the third
            runs = _start_nodes(soak, out)
            while all(run.poll() is None for run in runs) and _lines(out / "log.txt") < lines:
                time.sleep(0.02)
            _link(up=False)
            start = time.monotonic()
            codes = [run.wait(timeout=300) for run in runs]
            cuts.append(time.monotonic() - start)
            _link(up=True)
            soak.check(codes == [LOST, LOST], runs[0], f"after the cut: exit codes {codes}")
            soak.check(cuts[-1] < 60 * TIMEOUT + 15, runs[0], f"the nodes ended {cuts[-1]:.0f} s after the cut")
        codes = [run.wait(timeout=300) for run in _start_nodes(soak, out)]
        soak.check(codes == [0, 0], None, f"with the link again: exit codes {codes}")
        for difference in differences(out, whole):
            soak.fault(difference)
        soak.say(f"{len(cuts)} cuts; both nodes had ended after {', '.join(f'{cut:.0f}' for cut in cuts)} s "
                 f"(--dist_timeout {60 * TIMEOUT:.0f} s), and went on as if there had been none")
    finally:
        _remove_nodes()


def _ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


def _make_nodes() -> bool:
    if shutil.which("ip") is None:
        return False
    _remove_nodes()
    made = all(_ip("netns", "add", node) for node in NODES)
    made = made and _ip("link", "add", "veth0", "netns", NODES[0], "type", "veth", "peer", "name", "veth0",
                        "netns", NODES[1])
    for number, node in enumerate(NODES, 1):
        made = made and _ip("-n", node, "addr", "add", f"{NETWORK}.{number}/24", "dev", "veth0")
        made = made and all(_ip("-n", node, "link", "set", device, "up") for device in ("lo", "veth0"))
    return made


def _remove_nodes() -> None:
    for node in NODES:
        _ip("netns", "del", node)


def _link(up: bool) -> None:
    _ip("-n", NODES[1], "link", "set", "veth0", "up" if up else "down")


def _start_nodes(soak: Soak, out: Path) -> list[Run]:
    runs = []
    for rank, node in enumerate(NODES):
        arguments = soak.workshop.arguments(out, "--world_size", 2, "--rank", rank, "--dist_url",
                                            f"tcp://{NETWORK}.1:{PORT}", "--dist_timeout", TIMEOUT)
        command = ["ip", "netns", "exec", node, sys.executable, str(ROOT / "main.py"), *arguments]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "veth0", "OMP_NUM_THREADS": "1"}
        runs.append(soak.start(out, fault=partial(os.execvpe, "ip", command, environment)))
    return runs


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def check_operator(soak: Soak) -> None:
    """Forward and backward with random shapes, strides and locations, under AddressSanitizer, per kind of kernels."""
    # libstdc++ too: the sanitizer looks for its functions when it is loaded, before Python's modules bring it along.
    libraries = [_library(name) for name in ("libasan.so", "libstdc++.so.6")]
    if not all(map(os.path.isabs, libraries)):
        soak.say("skipped: there is no g++ with libasan")
        return
    compiler = soak.folder / "g++"  # -O3, or checks in place of calls, would take several times as long to compile
    sanitize = "-O1 -g1 -fsanitize=address --param asan-instrumentation-with-call-threshold=0"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} "$@" {sanitize}\n')
    compiler.chmod(0o755)
    flags = {"CXX": str(compiler), "CC": str(compiler), "FORCE_CUDA": "0"}
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", str(soak.folder / "lib"),
             "--build-temp", str(soak.folder / "tmp")]
    built = subprocess.run(build, cwd=ROOT / "models/ops", env=os.environ | flags, capture_output=True, text=True)
    if built.returncode:
        soak.fault(f"the operator does not build with -fsanitize=address:\n{built.stderr[-1500:]}")
        return
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2",
        "PYTHONPATH": f"{soak.folder / 'lib'}{os.pathsep}{ROOT}"}
    kernels = ["portable", *(name for name in ("avx2", "avx512") if name in _processor())]
    seconds = max(5.0, soak.end - time.monotonic()) / len(kernels)
    for name in kernels:
        seed = soak.random.randrange(2**31)
        program = [sys.executable, str(ROOT / "tools/soak_operator.py"), str(seed), str(seconds)]
        done = subprocess.run(program, env=environment | {"DEFORM_ATTN_CPU": name}, capture_output=True, text=True)
        report = done.stderr[max(done.stderr.find("ERROR: AddressSanitizer"), 0):]
        soak.check(done.returncode == 0, None, f"{name} kernels:\n{report[:3000]}")
        soak.say(f"{name} kernels: {done.stdout.strip() or 'failed'}")


def _library(name: str) -> str:
    """The path of one of g++'s libraries; not an absolute one if there is none."""
    if shutil.which("g++") is None:
        return ""
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    """The processor's abilities; "avx512" stands for the foundation of AVX-512."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


# what a long run uses up

def find_leaks(soak: Soak) -> None:
    """Memory, descriptors and threads of the training process after each epoch of many."""
    out, samples = soak.folder / "long", []
    epochs = STEPS // STEPS_PER_EPOCH
    run = soak.start(out, workers=2, options=[
        f"epochs={epochs}", f"epoch_steps={STEPS_PER_EPOCH}", "eval_interval=5", "early_stop=None", "batch_size=1",
        "checkpoint_steps=0", "save_checkpoint_interval=1000"])
    seen = 0
    while run.poll() is None:
        if (epoch := _lines(out / "log.txt")) > seen:
            seen = epoch
            if sample := _usage(run.process):
                samples.append((epoch * STEPS_PER_EPOCH, *sample))
        time.sleep(0.05)
    soak.expect(run, 0)
    steps, *usages = np.array(samples, dtype=float)[int(WARM_UP * len(samples)):].T
    limits = {"MB of memory": 5.0, "file descriptors": 1.0, "threads": 1.0}  # per 1,000 steps
    for (name, limit), usage in zip(limits.items(), usages):
        slope = 1000 * np.polyfit(steps, usage, 1)[0]
        soak.check(slope < limit, None, f"{slope:.1f} {name} more every 1,000 steps")
        soak.say(f"{usage.mean():.0f} {name}, {slope:+.2f} every 1,000 steps of {STEPS}")


def _usage(process: int) -> tuple[float, int, int] | None:
    """Resident memory in MB, open file descriptors and threads of a process; None if it has ended."""
    folder = Path(f"/proc/{process}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(folder / "fd")), int(status["Threads"])
    except (OSError, KeyError):
        return None
