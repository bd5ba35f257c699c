"""The operators as nodes of OpenVINO, against the plain ones in float64."""
import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.ops import openvino_nodes
from tests.models.ops.operands import FORMS, Case, assert_near, by_definition, make_operands
from util.errors import UserError

openvino = pytest.importorskip("openvino")
helper = pytest.importorskip("onnx.helper")

built = pytest.mark.skipif(not openvino_nodes.available(),
                           reason=f"the operators for OpenVINO are not built: {openvino_nodes.BUILD_COMMAND}")
each_form = pytest.mark.parametrize("form", FORMS)
INPUTS = {"kda": ("query", "value"), "kda_keys": ("query", "value", "key"), "msda": ("value", "weights")}
RANKS = {"query": 4, "value": 4, "key": 4, "weights": 5, "shapes": 1, "locations": 6}


def core():
    core = openvino_nodes.shared_core()
    openvino_nodes.add_nodes(core, "a test")
    return core


def model(core, form):
    """One node in an ONNX file; all sizes are dynamic."""
    names = [*INPUTS[form], "shapes", "locations"]
    kind = "MSDeformAttn" if form == "msda" else "KeyAwareDeformAttn"
    node = helper.make_node(kind, names, ["output"], domain=openvino_nodes.DOMAIN)
    inputs = [helper.make_tensor_value_info(name, 7 if name == "shapes" else 1, [None] * RANKS[name])
              for name in names]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("output", 1, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(openvino_nodes.DOMAIN, 1)]
    return core.read_model(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), b"")


def compiled(form, threads=1):
    chosen = core()
    return chosen.compile_model(model(chosen, form), "CPU",
                                {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads})


def run(node, form, x, shapes):
    flat = np.array([side for shape in shapes for side in shape], np.int64)
    operands = [x[name].numpy() for name in INPUTS[form]]
    return torch.from_numpy(node([*operands, flat, x["locations"].numpy()])[0].copy())


def check(node, form, case):
    x = make_operands(case, torch.float32)
    expected = by_definition(form, x, case.shapes)
    assert_near({"output": run(node, form, x, case.shapes)}, {"output": expected}, 5e-6)


CASES = [Case(((6, 9), (3, 4)), queries=37, channels=16, points=3), Case(((20, 30), (10, 15)), queries=9, channels=32),
         Case(queries=33, channels=7, heads=3, batch=3), Case(((1, 1),), queries=1, channels=1, heads=1, batch=1),
         Case(((0, 3), (2, 2), (4, 0)), channels=8), Case(((2, 3),) * 16, queries=65, channels=32, points=1),
         Case(((5, 4),), points=17, channels=8)]


@built
@each_form
def test_values_are_those_of_the_definition_whatever_the_sizes(form):
    """One model for all of them."""
    for threads in (1, 2):
        node = compiled(form, threads)
        for case in CASES:
            check(node, form, case)


@built
@each_form
@pytest.mark.parametrize("path", ["portable", "avx2"])
def test_each_set_of_instructions(form, path, monkeypatch):
    monkeypatch.setenv("DEFORM_ATTN_CPU", path)
    check(compiled(form), form, CASES[0])


@built
def test_instructions_that_are_none_are_told_before_a_model_runs(monkeypatch):
    monkeypatch.setenv("DEFORM_ATTN_CPU", "sse")
    with pytest.raises(UserError, match="'sse' must be one of avx512, avx2, portable"):
        core()


@built
@each_form
@pytest.mark.parametrize("far", [9.0, -1e9, float("inf"), float("nan")])
def test_locations_far_away_count_as_outside(form, far):
    x, outside = (make_operands(CASES[0], torch.float32) for _ in range(2))
    x["locations"][:, 1::2] = far
    outside["locations"][:, 1::2] = 5
    node = compiled(form)
    assert torch.equal(run(node, form, x, CASES[0].shapes), run(node, form, outside, CASES[0].shapes))


@built
@each_form
@pytest.mark.parametrize("case", [Case(queries=0), Case(batch=0)], ids=["queries", "images"])
def test_calls_without_queries_or_images(form, case):
    output = run(compiled(form), form, make_operands(case, torch.float32), case.shapes)
    assert output.shape == (case.batch, case.queries, case.heads * case.channels)


@built
@each_form
def test_a_map_without_pixels_gives_zeros(form):
    case = Case(((0, 3), (2, 0)))
    assert not run(compiled(form), form, make_operands(case, torch.float32), case.shapes).any()


@built
def test_results_are_the_same_on_any_number_of_threads():
    x = make_operands(CASES[0], torch.float32)
    first, second = (run(compiled("kda", threads), "kda", x, CASES[0].shapes) for threads in (1, 2))
    assert torch.equal(first, second)


@built
@pytest.mark.parametrize("name, misfit, told", [
    ("shapes", lambda x: x[:1], "spatial_shapes"), ("shapes", lambda x: x + 1, "tokens"),
    ("shapes", lambda x: -x, "negative"),
    ("shapes", lambda x: x * 0 + (1 << 16), "2.31 tokens"), ("locations", lambda x: x[..., :1], "sampling_locations"),
    ("locations", lambda x: x[:, :, :1], "sampling_locations"), ("query", lambda x: x[:, :2], "query"),
    ("query", lambda x: x[..., :2], "query"), ("key", lambda x: x[:, :3], "key")])
def test_what_does_not_fit_is_an_error(name, misfit, told):
    """Never a read of memory that is not there."""
    case, chosen = Case(), core()
    x = {**make_operands(case, torch.float32), "shapes": torch.tensor(case.shapes).flatten()}
    x[name] = misfit(x[name]).contiguous()
    names = ("query", "value", "key", "shapes", "locations")
    node = model(chosen, "kda_keys")
    with pytest.raises(RuntimeError, match=told):
        node.reshape({n: list(x[n].shape) for n in names})  # OpenVINO swallows the errors of nodes of dynamic size
        chosen.compile_model(node, "CPU")([x[n].numpy() for n in names])


@built
def test_a_model_with_the_node_is_written_and_read(tmp_path):
    chosen = core()
    openvino.save_model(model(chosen, "kda"), tmp_path / "m.xml")
    x = make_operands(CASES[0], torch.float32)
    first = run(compiled("kda"), "kda", x, CASES[0].shapes)
    again = run(core().compile_model(tmp_path / "m.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), "kda", x,
                CASES[0].shapes)
    assert torch.equal(first, again)


def signal_stack():
    """Where the thread that calls handles signals, 0 for on its own stack."""
    class Stack(ctypes.Structure):
        _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address or 0


@built
@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is asked as Linux declares it")
def test_models_that_are_gone_leave_no_stack_for_signals_that_is_gone():
    """OpenVINO gives the thread one with each Core that compiles a model, and frees it with that Core. Whatever lies
    there afterwards is overwritten by the next signal: a semaphore of a training that aborts, for one."""
    first, second = compiled("kda"), compiled("msda")
    before = signal_stack()
    del first
    gc.collect()
    del second
    gc.collect()
    assert signal_stack() == before
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [[int(side, 16) for side in line.split()[0].split("-")] for line in maps]
    assert before == 0 or any(low <= before < high for low, high in ranges)


@built
def test_the_library_that_is_there_does_not_keep_make_from_building_it_for_another_openvino():
    command = ["make", "-n", "operators-openvino", f"PYTHON={sys.executable}"]
    printed = subprocess.run(command, cwd=openvino_nodes.LIBRARY.parents[4], capture_output=True, text=True, check=True)
    assert "cmake --build" in printed.stdout


def test_without_the_library_an_error_says_how_to_build(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_nodes, "LIBRARY", tmp_path / "none.so")
    with pytest.raises(UserError, match="x.xml needs .* not built: make operators-openvino"):
        openvino_nodes.add_nodes(openvino_nodes.shared_core(), "x.xml")


def test_a_library_that_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_nodes, "LIBRARY", tmp_path / "broken.so")
    (tmp_path / "broken.so").write_bytes(b"no library")
    with pytest.raises(UserError, match="cannot be loaded.*make operators-openvino"):
        openvino_nodes.add_nodes(openvino_nodes.shared_core(), "x.xml")
