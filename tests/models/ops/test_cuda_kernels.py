"""The CUDA kernels' own sources, run on the CPU by emulation/cuda_emulation.h, against the reference in float64.

What runs them is slow: compiling them alone takes half a minute.
"""
import ctypes
import fcntl
import math
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from models.ops import reference

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "models/ops/src"
EMULATION = Path(__file__).with_name("emulation")
COMPILER = shutil.which("c++") or shutil.which("g++")
FEW_QUERIES = 256  # (query, head) pairs below which a warp works on one
PADDING = 64

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-11, torch.float16: 4e-3, torch.bfloat16: 3e-2}
GRADIENTS = ["query", "key", "value", "locations", "weights"]


@dataclass
class Case:
    """One call. mode: "key_is_value" has key == value, "distinct" has keys of their own, "given" has given weights."""
    mode: str = "key_is_value"
    dtype: torch.dtype = torch.float32
    shapes: tuple[tuple[int, int], ...] = ((5, 7), (0, 5), (1, 1), (3, 2))
    batch: int = 2
    queries: int = 5
    heads: int = 2
    channels: int = 32
    points: int = 3
    shared_locations: bool = False
    wanted: tuple[str, ...] = tuple(GRADIENTS)

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def tokens(self) -> int:
        return sum(h * w for h, w in self.shapes)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """The kernels with vector and with scalar atomics: from Hopper on and before. xdist's workers compile them once."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "cuda_emulation"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "scalar.so").exists():
            compile_libraries(folder)
    return {name: load(folder / f"{name}.so") for name in ("vector", "scalar")}


def compile_libraries(folder):
    sources = {"driver": [EMULATION / "driver.cpp"], "forward": [SOURCE / "cuda/forward.cu"],
               "vector": [SOURCE / "cuda/backward.cu"], "scalar": [SOURCE / "cuda/backward.cu", "-DSCALAR_ATOMICS"]}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: run_compiler("-c", *sources[name], "-o", folder / f"{name}.o"),
                      ["vector", "scalar", "forward", "driver"]))
    for name in ("vector", "scalar"):
        objects = [folder / f"{part}.o" for part in ("driver", "forward", name)]
        run_compiler("-shared", "-x", "none", *objects, "-o", folder / f"{name}.so")


def run_compiler(*arguments):
    command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE",
               f"-DFEW_QUERIES={FEW_QUERIES}", f"-I{EMULATION}", f"-I{SOURCE}", "-x", "c++", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def load(file):
    library = ctypes.CDLL(str(file))
    library.run.restype = ctypes.c_char_p
    return library


@pytest.fixture
def library(libraries):
    return libraries["vector"]


def make_locations(case, seed=0):
    """Between pixel centres, where bilinear sampling is smooth; a third of them outside the map."""
    generator = torch.Generator().manual_seed(seed)
    heads = 1 if case.shared_locations else case.heads
    shape = case.batch, case.queries, heads, len(case.shapes), case.points
    size = torch.tensor([(max(w, 1), max(h, 1)) for h, w in case.shapes], dtype=torch.float64)[:, None]
    pixels = (torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * (size + 2) - 1.5).floor()
    pixels += 0.05 + 0.9 * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return ((pixels + 0.5) / size).to(case.wide)


def make_inputs(case, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    query, key, value = (rand(case.batch, n, case.heads, case.channels).to(case.dtype)
                         for n in (case.queries, case.tokens, case.tokens))
    weights = rand(case.batch, case.queries, case.heads, len(case.shapes), case.points).flatten(3).softmax(-1)
    return {"query": query, "key": value if case.mode == "key_is_value" else key, "value": value,
            "locations": make_locations(case, seed),
            "weights": weights.unflatten(3, (len(case.shapes), case.points)).to(case.wide),
            "grad_output": rand(case.batch, case.queries, case.heads, case.channels).to(case.dtype)}


def expected(case, inputs):
    """Output, log-sum-exp in base 2 and all gradients, by autograd through the reference in float64.

    grid_sample takes no empty maps: they become a pixel of zeros. Locations that are not finite become ones outside.
    """
    leaves = {name: inputs[name].double().requires_grad_() for name in GRADIENTS if name != "key"}
    leaves["key"] = leaves["value"] if case.mode == "key_is_value" else inputs["key"].double().requires_grad_()
    shapes = [(h, w) if h * w else (1, 1) for h, w in case.shapes]

    def with_empty_maps(tokens):
        parts = tokens.split([h * w for h, w in case.shapes], 1)
        return torch.cat([part if part.shape[1] else part.new_zeros(part.shape[0], 1, *part.shape[2:])
                          for part in parts], 1)

    locations = leaves["locations"]
    far = ~(locations.abs() < 1e3)
    locations = locations.masked_fill(far, -5).expand(-1, -1, case.heads, -1, -1, -1)
    locations.retain_grad()
    value = with_empty_maps(leaves["value"])
    if case.mode == "given":
        output, log_sum_exp = reference.ms_deform_attn(value, shapes, locations, leaves["weights"]), None
    else:
        key = value if case.mode == "key_is_value" else with_empty_maps(leaves["key"])
        output = reference.key_aware_deform_attn(leaves["query"], key, value, shapes, locations)
        logits = (leaves["query"].permute(0, 2, 3, 1)[..., None] * reference.sample(key, shapes, locations)).sum(2)
        log_sum_exp = (logits * case.channels ** -0.5).logsumexp(-1).transpose(1, 2) / math.log(2)
    output = output.unflatten(2, (case.heads, case.channels))
    output.backward(inputs["grad_output"].double())
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    gradients["locations"] = locations.grad
    if case.mode == "key_is_value":
        gradients["key"] = None
    return output.detach(), log_sum_exp, gradients


def guarded(x, fill=float("nan")):
    """A copy of x between paddings: NaNs show in a result that was made from them, and none may be overwritten."""
    buffer = torch.full((x.numel() + 2 * PADDING,), fill, dtype=x.dtype)
    copy = buffer[PADDING: PADDING + x.numel()].view(x.shape)
    copy.copy_(x)
    return copy


def assert_guard_intact(x, fill=float("nan")):
    buffer = x.new_empty(0).set_(x.untyped_storage())
    guard = torch.cat([buffer[:PADDING], buffer[-PADDING:]])
    torch.testing.assert_close(guard, torch.full_like(guard, fill), equal_nan=True, rtol=0, atol=0)


def address(x):
    return None if x is None else x.data_ptr()


def run(library, case, inputs):
    """Output, log-sum-exp and gradients (None where not wanted) of the kernels."""
    inputs = {name: guarded(x) for name, x in inputs.items() if name != "key" or case.mode != "key_is_value"}
    inputs.setdefault("key", inputs["value"])
    key_aware = case.mode != "given"
    output = guarded(torch.zeros_like(inputs["query"]))
    log_sum_exp = guarded(torch.zeros(case.batch, case.queries, case.heads, dtype=case.wide)) if key_aware else None
    location_shape = case.batch, case.queries, case.heads, len(case.shapes), case.points, 2
    gradients = {"query": torch.zeros_like(output), "key": torch.zeros_like(inputs["key"], dtype=case.wide),
                 "value": torch.zeros_like(inputs["value"], dtype=case.wide),
                 "locations": torch.zeros(location_shape, dtype=case.wide),
                 "weights": torch.zeros_like(inputs["weights"])}
    unused = {"key_is_value": {"key", "weights"}, "distinct": {"weights"}, "given": {"query", "key"}}[case.mode]
    gradients = {name: guarded(x) if name in case.wanted and name not in unused else None
                 for name, x in gradients.items()}

    strides = inputs["locations"].expand(location_shape).stride()[:3]
    pointers = [address(inputs[name]) for name in ("query", "key", "value", "locations", "weights")]
    pointers = [None if p is None or (key_aware and i == 4) or (not key_aware and i < 2) else p
                for i, p in enumerate(pointers)] + [address(output), address(log_sum_exp),
                                                    address(inputs["grad_output"])]
    sizes = [case.batch, case.queries, case.tokens, case.heads, case.channels, len(case.shapes), case.points]
    arguments = (DTYPES[case.dtype], int(key_aware), array(ctypes.c_int64, sizes),
                 array(ctypes.c_int, [n for shape in case.shapes for n in shape]), array(ctypes.c_void_p, pointers),
                 array(ctypes.c_int64, strides))
    for targets in (None, array(ctypes.c_void_p, [address(gradients[name]) for name in GRADIENTS])):
        error = library.run(*arguments, targets)
        assert error is None, error.decode()
    for x in (output, log_sum_exp, *inputs.values(), *gradients.values()):
        if x is not None:
            assert_guard_intact(x)
    return output, log_sum_exp, gradients


def array(kind, items):
    return (kind * len(items))(*items)


def check(library, case, inputs=None):
    inputs = make_inputs(case) if inputs is None else inputs
    output, log_sum_exp, gradients = run(library, case, inputs)
    expected_output, expected_lse, expected_gradients = expected(case, inputs)
    tolerance = TOLERANCES[case.dtype]

    def close(name, actual, wanted):
        scale = max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=tolerance * scale,
                                   msg=lambda text: f"{name}: {text}")

    close("output", output, expected_output)
    if log_sum_exp is not None:
        close("log_sum_exp", log_sum_exp, expected_lse)
    compared = {name for name, gradient in gradients.items() if gradient is not None}
    for name in compared:
        close(f"gradient of {name}", gradients[name], expected_gradients[name])
    return compared


MODES = ["key_is_value", "distinct", "given"]
BY_MODE = {"key_is_value": {"query", "value", "locations"}, "distinct": {"query", "key", "value", "locations"},
           "given": {"value", "locations", "weights"}}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_few_queries(library, mode, dtype):
    assert check(library, Case(mode, dtype)) == BY_MODE[mode]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [8, 16, 30, 64, 71, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_channels(library, mode, dtype, channels):
    check(library, Case(mode, dtype, batch=1, queries=3, channels=channels))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_more_channels_than_a_warp_holds(library, mode):
    check(library, Case(mode, shapes=((2, 3),), batch=1, queries=1, heads=1, channels=300))


TILED = (9, 35), (10, 18), (5, 9), (1, 1)  # larger and smaller than a tile, none a multiple of one


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_queries_are_all_tokens(library, mode, dtype):
    case = Case(mode, dtype, shapes=TILED, batch=1, heads=1)
    check(library, replace(case, queries=case.tokens))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [8, 16, 64])
@pytest.mark.parametrize("mode", MODES)
def test_queries_are_the_tokens_of_the_last_levels(library, mode, channels):
    for dtype in (torch.float32, torch.bfloat16):
        check(library, Case(mode, dtype, shapes=((4, 5), (9, 17), (0, 3), (3, 2)), queries=159, channels=channels,
                            points=1))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_many_queries_that_are_no_tokens(library, mode):
    check(library, Case(mode, torch.bfloat16, queries=131, heads=1, points=4))


@pytest.mark.slow
@pytest.mark.parametrize("points", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("queries", [3, 140])
def test_numbers_of_points(library, queries, points):
    check(library, Case(dtype=torch.bfloat16, shapes=((3, 4), (2, 2), (1, 3)), batch=1, queries=queries, points=points))


@pytest.mark.slow
def test_the_most_points_of_the_fast_kernels(library):
    """They tell a point's level by a multiplication, which is inexact for many more."""
    check(library, Case("given", shapes=((2, 3),) * 16, batch=1, queries=1, heads=1, points=1 << 13))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [30, 32])
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_map_wider_than_all_tokens(library, mode, channels):
    check(library, Case(mode, shapes=((0, 9), (1, 1)), batch=1, queries=20, heads=1, channels=channels))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("queries", [3, 140])
@pytest.mark.parametrize("mode", MODES)
def test_heads_share_locations(library, mode, queries, dtype):
    check(library, Case(mode, dtype, batch=1, queries=queries, shared_locations=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("queries", [7, 140])
@pytest.mark.parametrize("mode", MODES)
def test_locations_far_outside(library, mode, queries, dtype):
    case = Case(mode, dtype, batch=1, queries=queries)
    inputs = make_inputs(case)
    far = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e9, -40.0], dtype=case.wide)
    locations = inputs["locations"].view(-1, 2)
    locations[::5, 0] = far.repeat(len(locations))[: len(locations[::5])]
    locations[2::7, 1] = far.repeat(len(locations))[: len(locations[2::7])]
    check(library, case, inputs)


@pytest.mark.slow
def test_samples_outside_keep_their_share_of_the_softmax(library):
    case = Case(shapes=((3, 3),), batch=1, queries=1, heads=1, points=4)
    inputs = make_inputs(case)
    inputs["query"].zero_()
    inputs["value"].fill_(1)
    inputs["locations"].fill_(0.5)[..., 2:, :] = 9
    output, log_sum_exp, _ = run(library, case, inputs)
    torch.testing.assert_close(output, torch.full_like(output, 0.5))
    torch.testing.assert_close(log_sum_exp, torch.full_like(log_sum_exp, 2))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [30, 3000])
def test_large_logits_do_not_overflow(library, scale):
    case = Case(queries=140, batch=1)
    inputs = make_inputs(case)
    inputs["query"] *= scale
    output, _, gradients = run(library, case, inputs)
    torch.testing.assert_close(output.double(), expected(case, inputs)[0], rtol=1e-3, atol=1e-3)
    assert all(x.isfinite().all() for x in gradients.values() if x is not None)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [30, 32])
@pytest.mark.parametrize("mode", MODES)
def test_only_the_wanted_gradients(library, mode, channels):
    for name in sorted(BY_MODE[mode]):
        assert check(library, Case(mode, channels=channels, batch=1, queries=3, wanted=(name,))) == {name}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [5, 70])
@pytest.mark.parametrize("mode", MODES)
def test_scalar_atomics(libraries, mode, queries, dtype):
    check(libraries["scalar"], Case(mode, dtype, queries=queries))


@pytest.mark.slow
def test_the_guard_notices_what_is_read(library):
    case = Case(batch=1)
    inputs = make_inputs(case)
    inputs["value"][:, -1] = float("nan")
    assert run(library, case, inputs)[0].isnan().any()


@pytest.mark.slow
def test_too_large_a_grid_is_an_error(library):
    case = Case(mode="given", batch=1, queries=1, heads=1 << 16, channels=1)
    with pytest.raises(AssertionError, match="more queries or heads"):
        run(library, case, make_inputs(case))


MISTAKES = [
    ("*out += __shfl_xor_sync(0xffffffffu, 1, 1);", None),
    ("if (threadIdx.x != 5) *out += __shfl_xor_sync(0xffffffffu, 1, 1);", "did not reach"),
    ("*out += __shfl_xor_sync(0xffffffffu, 1, threadIdx.x < 3 ? 1 : 2);", "diverged"),
    ("*out += __ldg(reinterpret_cast<const double*>(reinterpret_cast<char*>(out) + 4));", "misaligned"),
]


def test_the_emulation_notices_mistakes(tmp_path):
    kernels = "".join(f"""
    __global__ void kernel{i}(int* out) {{ {body} }}
    extern "C" const char* run{i}(int* out) {{
      LAUNCH(kernel{i}, dim3(2), dim3(64), nullptr, out);
      return cudaGetLastError() == cudaSuccess ? nullptr : cudaGetErrorString(1);
    }}""" for i, (body, _) in enumerate(MISTAKES))
    (tmp_path / "kernel.cu").write_text('#include "cuda/device.cuh"' + kernels)
    run_compiler(tmp_path / "kernel.cu", "-shared", "-o", tmp_path / "kernel.so")
    library = ctypes.CDLL(str(tmp_path / "kernel.so"))
    for i, (_, error) in enumerate(MISTAKES):
        out = torch.zeros(8, dtype=torch.int64)
        run = getattr(library, f"run{i}")
        run.restype = ctypes.c_char_p
        message = run(ctypes.c_void_p(out.data_ptr()))
        if error is None:
            assert message is None and out[0] == 2 * 64
        else:
            assert error in message.decode()
