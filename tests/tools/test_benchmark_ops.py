import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tools.benchmark_ops import SIZES, Size, make_case, make_locations, with_ratios

CPU = torch.device("cpu")


def benchmark(*arguments, **environment):
    return subprocess.run([sys.executable, "tools/benchmark_ops.py", "--device", "cpu", *map(str, arguments)],
                          capture_output=True, text=True, timeout=300, env=os.environ | environment)


def test_writes_table_numbers_and_picture(tmp_path):
    files = [f"--{kind}={tmp_path / name}" for kind, name in
             [("json", "ops.json"), ("markdown", "ops.md"), ("picture", "ops.png")]]
    done = benchmark("--only", "torch", "--sizes", "tiny", "--ops", "kda_keys", "--repeat", 2, "--threads", 1, *files)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ops.json").read_text())
    assert result["torch"] == torch.__version__ and result["dtype"] == "float32" and result["threads"] == 1
    assert [(case["op"], case["size"], case["pass"]) for case in result["cases"]] == [
        ("kda_keys", "tiny", "forward"), ("kda_keys", "tiny", "backward")]
    for case in result["cases"]:
        assert (case["batch"], case["queries"]) == (1, 279) and "ratio_ms" not in case and "native" not in case
        assert 0 < case["torch"]["ms"] <= case["torch"]["ms_median"]
        # Sampled keys and values are 279 x 8 x 16 x 32 floats each, all of them there at once.
        assert case["torch"]["mb"] > 2 * 279 * 8 * 16 * 32 * 4 / 2**20
    assert result["cases"][0]["torch"]["mb"] < result["cases"][1]["torch"]["mb"] < 200
    text = (tmp_path / "ops.md").read_text()
    assert done.stdout.strip() == text.strip() and text.startswith(result["device"])
    assert "| KDA, separate keys | 279 queries: all tokens | forward + backward |" in text
    with Image.open(tmp_path / "ops.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.slow
def test_ratios_are_those_of_the_numbers(tmp_path):
    done = benchmark("--sizes", "tiny", "--ops", "msda", "--repeat", 1, "--dtype", "bfloat16", "--json",
                     tmp_path / "ops.json", "--picture", tmp_path / "ops.png", DEFORM_ATTN_CPU="portable")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ops.json").read_text())
    assert result["cpu_path"] == "portable"
    assert result["command"].startswith("DEFORM_ATTN_CPU=portable python tools/benchmark_ops.py")
    for case in result["cases"]:
        assert case["ratio_ms"] == pytest.approx(case["torch"]["ms"] / case["native"]["ms"])
        assert case["ratio_mb"] is None or case["ratio_mb"] == pytest.approx(case["torch"]["mb"] / case["native"]["mb"])


def test_without_the_compiled_operators_it_says_how_to_build_them(tmp_path):
    (tmp_path / "lite_detr_ops.py").write_text("raise ImportError('hidden')")
    done = benchmark("--sizes", "tiny", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "pip install --no-build-isolation ./models/ops" in done.stderr and "--only torch" in done.stderr


def test_ratios_compare_pytorch_with_the_compiled_operator():
    native, reference = {"ms": 2.0, "mb": 4.0}, {"ms": 30.0, "mb": 10.0}
    record = with_ratios({"native": native, "torch": reference})
    assert record["ratio_ms"] == 15 and record["ratio_mb"] == 2.5
    assert with_ratios({"native": {"ms": 1.0, "mb": 0.0}, "torch": reference})["ratio_mb"] is None
    assert with_ratios({"torch": reference}) == {"torch": reference}


@pytest.mark.parametrize("op, inputs", [("kda", 3), ("kda_keys", 4), ("msda", 3)])
def test_cases_are_the_same_every_time_and_differentiable(op, inputs):
    cases = [make_case(SIZES["tiny"], op, torch.bfloat16, CPU) for _ in range(2)]
    assert torch.equal(cases[0].step("forward"), cases[1].step("forward"))
    gradients = cases[0].step("backward")
    assert len(gradients) == inputs and all(g.abs().sum() > 0 for g in gradients)
    locations = next(x for x in cases[0].inputs if x.dim() == 6)
    assert locations.dtype == torch.float32 and cases[0].step("forward").dtype == torch.bfloat16


@pytest.mark.parametrize("name, queries", [("all", 22223), ("high", 5523), ("decoder", 900), ("decoder8", 1100)])
def test_sizes_have_the_queries_that_they_name(name, queries):
    locations = make_locations(SIZES[name], torch.Generator().manual_seed(0))
    assert locations.shape == (8 if name == "decoder8" else 1, queries, 8, 4, 4, 2)
    assert f"{queries:,}" in SIZES[name].meaning
    assert ((locations > 0) & (locations < 1)).float().mean() > 0.6  # on wide maps; boxes reach over the border


def test_tokens_look_a_few_pixels_around_themselves():
    size = Size("", first_level=1, levels=((40, 80), (20, 40)))
    locations = make_locations(size, torch.Generator().manual_seed(0))
    pixels = locations * torch.tensor([[80, 40], [40, 20]])[:, None]
    offsets = pixels[..., 1, :, :] - (torch.cartesian_prod(torch.arange(20), torch.arange(40)).flip(-1) + 0.5)[
        None, :, None, None]
    assert offsets.mean().abs() < 0.1 and abs(offsets.std() - 3) < 0.1
    assert abs((pixels[..., 0, :, :] - 2 * (pixels[..., 1, :, :] - offsets)).std() - 3) < 0.1
