"""What the operators promise, of every implementation."""
import json
import math
import runpy
import subprocess
import sys
import types
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

from models.ops import functional, implementation, key_aware_deform_attn, ms_deform_attn, native
from models.ops.native import BUILD_COMMAND
from tests.models.ops.operands import (
    FORMS,
    Case,
    assert_near,
    by_definition,
    differentiate,
    in_float64,
    make_operands,
    run,
)
from util.errors import UserError

CASE = Case()
SHAPES = list(CASE.shapes)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=["native", "torch", "gather"])
def each(request):
    """Runs a test on each implementation."""
    with implementation(request.param):
        yield request.param


each_form = pytest.mark.parametrize("form", FORMS)


def assert_as_defined(form, x, shapes):
    """The output is that of the definition, and all gradients are finite."""
    results = differentiate(form, x, shapes)
    torch.testing.assert_close(results["output"], by_definition(form, x, shapes))
    for name in FORMS[form]:
        assert results[name].shape == x[name].shape and results[name].isfinite().all(), name


@each_form
@pytest.mark.parametrize("channels", [1, 4, 7])
@pytest.mark.parametrize("queries", [1, 5, 40])
def test_values_are_those_of_the_definition(each, form, channels, queries):
    case = Case(((5, 7), (1, 3), (2, 2)), queries, channels, points=3)
    assert_as_defined(form, make_operands(case), case.shapes)


@each_form
def test_gradients_are_those_of_differences(each, form):
    x, names = make_operands(CASE), FORMS[form]

    def call(*inputs):
        return run(form, x | dict(zip(names, inputs)), SHAPES)

    assert torch.autograd.gradcheck(call, [x[name].requires_grad_() for name in names])


def test_pixel_centres_are_sampled_exactly(each):
    """One level, one point, one channel: the token itself, whatever its weight in the softmax of one."""
    height, width = 3, 4
    value = torch.arange(12.0).view(1, 12, 1, 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    locations = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).view(1, 12, 1, 1, 1, 2)
    sampled = key_aware_deform_attn(torch.randn(1, 12, 1, 1), value, value, [(height, width)], locations)
    torch.testing.assert_close(sampled.flatten(), torch.arange(12.0))


@pytest.mark.parametrize("outside", [3.0, -2.0, 1e30, NAN, INF, -INF])
def test_a_sample_outside_keeps_its_share_of_the_softmax(each, outside):
    """Its key is 0, so its weight is exp(0) over the sum."""
    token, query = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.5])
    value = token.expand(1, 4, 1, 2)
    locations = torch.tensor([[0.5, 0.5], [outside, 0.5]]).view(1, 1, 1, 1, 2, 2)
    out = key_aware_deform_attn(query.view(1, 1, 1, 2), value, value, [(2, 2)], locations)
    weight = math.exp(float(query @ token) / math.sqrt(2))
    torch.testing.assert_close(out.flatten(), weight / (weight + 1) * token)


def test_values_outside_are_zero(each):
    locations = torch.tensor([-0.5, 0.5]).view(1, 1, 1, 1, 1, 2)
    out = ms_deform_attn(torch.ones(1, 4, 1, 2), [(2, 2)], locations, torch.ones(1, 1, 1, 1, 1))
    assert torch.equal(out, torch.zeros(1, 1, 2))


def test_attention_weights_are_used_as_they_are(each):
    """They need not sum to one."""
    x = make_operands(CASE)
    torch.testing.assert_close(run("msda", x | {"weights": 3 * x["weights"]}, SHAPES), 3 * run("msda", x, SHAPES))


@pytest.mark.parametrize("far", [NAN, INF, -INF, 1e30, -1e30, 1e9])
@each_form
def test_locations_far_away_give_finite_results(each, form, far):
    x = make_operands(CASE, torch.float32)
    x["locations"][:, 0, :, 0, 0, 0] = far
    x["locations"][:, 1, :, :, 1, 1] = far
    x["locations"][:, 2] = far
    expected = by_definition(form, x, SHAPES)
    results = differentiate(form, x, SHAPES)
    torch.testing.assert_close(results["output"].double(), expected, rtol=1e-5, atol=1e-5)
    assert all(tensor.isfinite().all() for tensor in results.values())
    assert not results["locations"][:, 2].any()


@pytest.mark.parametrize("shapes", [
    ((3, 4), (0, 5), (2, 2)), ((3, 4), (2, 0)), ((0, 3), (2, 2)), ((0, 3), (0, 0)), ((1, 1), (1, 1)), ((1, 5), (5, 1)),
    ((0, 10**8), (1, 1)), ((10**8, 0), (1, 1))], ids=str)
@each_form
def test_small_and_empty_maps(each, form, shapes):
    case = Case(shapes)
    assert_as_defined(form, make_operands(case), shapes)


@pytest.mark.parametrize("case", [Case(queries=0), Case(batch=0), Case(batch=0, queries=0)], ids=str)
@each_form
def test_calls_without_queries_or_images(each, form, case):
    x = make_operands(case)
    results = differentiate(form, x, SHAPES)
    assert results["output"].shape == (case.batch, case.queries, case.heads * case.channels)
    for name in FORMS[form]:
        assert results[name].shape == x[name].shape and not results[name].any()


def test_large_logits_stay_finite(each):
    x = make_operands(CASE, torch.float32)
    x["query"], x["key"] = 1e4 * x["query"], 1e2 * x["key"]
    assert all(tensor.isfinite().all() for tensor in differentiate("kda_keys", x, SHAPES).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_form
def test_half_precision_accumulates_in_float32(each, form, dtype):
    """The result is the float32 one of the same rounded inputs, rounded once."""
    x = make_operands(Case(((9, 9),), points=40), dtype)
    out = run(form, x, [(9, 9)])
    expected = run(form, {name: tensor.float() for name, tensor in x.items()}, [(9, 9)])
    assert out.dtype == dtype
    spacing = expected.abs() * torch.finfo(dtype).eps
    assert ((out.float() - expected).abs() <= 0.501 * spacing + 1e-6).all()


# One tensor twice, and two tensors that are equal.

@pytest.mark.parametrize("other", [torch.clone, lambda x: x.view_as(x), lambda x: x[..., None].squeeze(-1)],
                         ids=["clone", "view", "squeezed"])
@pytest.mark.parametrize("queries", [1, 20])
def test_one_tensor_as_key_and_value_equals_two_equal_ones(each, queries, other):
    case = Case(((6, 8),), queries)
    x = make_operands(case)
    value = x["value"].detach()
    key = other(value).requires_grad_()
    two = key_aware_deform_attn(x["query"], key, value.requires_grad_(), case.shapes, x["locations"])
    grad_key, grad_value = torch.autograd.grad(two.square().sum(), [key, value])
    shared = value.detach().requires_grad_()
    one = key_aware_deform_attn(x["query"], shared, shared, case.shapes, x["locations"])
    one.square().sum().backward()
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(shared.grad, grad_key + grad_value)
    assert grad_key.abs().sum() > 0


# Layouts of memory.

def shifted(x):
    """Starts in the middle of its memory, at an odd element."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


def transposed(x):
    return x.transpose(0, 2).contiguous().transpose(0, 2)


def spread(x):
    """Every other element of its memory."""
    return torch.stack([x, torch.full_like(x, NAN)], -1)[..., 0]


@pytest.mark.parametrize("layout", [shifted, transposed, spread])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each_form
def test_layout_of_the_operands_does_not_matter(each, form, dtype, layout):
    x = make_operands(Case(channels=16), dtype)
    expected, leaves = differentiate(form, x, SHAPES), FORMS[form]
    changed = {name: layout(tensor).detach().requires_grad_(name in leaves) for name, tensor in x.items()}
    output = run(form, changed, SHAPES)
    torch.testing.assert_close(output, expected["output"])
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad(output, [changed[name] for name in leaves], layout(gradient))
    torch.testing.assert_close(dict(zip(leaves, gradients)), {name: expected[name] for name in leaves})


@pytest.mark.parametrize("channels", [8, 30])
@each_form
def test_an_expanded_gradient(each, form, channels):
    """That of sum(), which is one number in memory."""
    x = make_operands(Case(channels=channels))
    leaves = [x[name].requires_grad_() for name in FORMS[form]]
    gradients = torch.autograd.grad(run(form, x, SHAPES).sum(), leaves)
    output = run(form, x, SHAPES)
    torch.testing.assert_close(gradients, torch.autograd.grad(output, leaves, torch.ones_like(output)))


@pytest.mark.parametrize("sizes", [(2, 3, 1), (1, 3, 2), (2, 1, 2), (1, 1, 1)], ids=str)
@each_form
def test_locations_may_be_shared(each, form, sizes):
    """By the heads, the images or the queries; the gradient is then the sum of theirs."""
    x = make_operands(CASE)
    shared = x["locations"][: sizes[0], : sizes[1], : sizes[2]].clone()
    copied = shared.expand(x["locations"].shape).contiguous()
    expected = differentiate(form, x | {"locations": copied}, SHAPES)
    results = differentiate(form, x | {"locations": shared}, SHAPES, function=lambda form, x, shapes: run(
        form, x | {"locations": x["locations"].expand(copied.shape)}, shapes))
    assert results["locations"].shape == shared.shape
    torch.testing.assert_close(results.pop("locations"), expected.pop("locations").sum_to_size(shared.shape))
    torch.testing.assert_close(results, expected)


# Precision.

@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("already", [(), ("query",), ("key", "value")], ids=str)
@each_form
def test_autocast_rounds_all_but_locations_and_weights(each, form, already, half):
    x = make_operands(Case(channels=16), torch.float32)
    rounded = {name: tensor.to(half) if name in ("query", "key", "value") else tensor for name, tensor in x.items()}
    mixed = {name: rounded[name] if name in already else tensor for name, tensor in x.items()}
    expected = differentiate(form, rounded, SHAPES)
    with torch.autocast("cpu", half):
        results = differentiate(form, mixed, SHAPES)
    assert results["output"].dtype == half
    if each == "gather":  # for inference: autocast reaches into its backward pass
        results = {"output": results["output"]}
    for name, result in results.items():
        assert torch.equal(result.to(expected[name].dtype), expected[name]), name
        assert name == "output" or result.dtype == mixed[name].dtype


@each_form
def test_autocast_leaves_float64_alone(each, form):
    x = make_operands(CASE)
    expected = run(form, x, SHAPES)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(form, x, SHAPES)
    assert out.dtype == torch.float64 and torch.equal(out, expected)


@each_form
def test_half_precision_keeps_precise_locations(each, form):
    """On an edge 256 px from the border a step of a quarter pixel counts; bfloat16 knows no such step there."""
    value = (torch.arange(512) >= 256).float().view(1, 512, 1, 1)
    places = (256 + torch.tensor([-0.25, 0, 0.25])) / 512
    assert len(set(places.bfloat16().tolist())) == 1
    x = {"query": torch.zeros(1, 3, 1, 1), "key": value, "value": value, "weights": torch.ones(1, 3, 1, 1, 1),
         "locations": torch.stack([places, torch.full((3,), 0.5)], -1).view(1, 3, 1, 1, 1, 2)}
    with torch.autocast("cpu", torch.bfloat16):
        out = run(form, x, [(1, 512)])
    assert out.flatten().tolist() == [0.25, 0.5, 0.75]


@each_form
def test_locations_and_weights_of_another_precision(each, form):
    x = make_operands(CASE, torch.float32)
    rounded = {name: x[name].bfloat16() for name in ("locations", "weights")}
    expected = run(form, x | {name: tensor.float() for name, tensor in rounded.items()}, SHAPES)
    assert torch.equal(run(form, x | rounded, SHAPES), expected)
    doubled = {name: x[name].double() for name in ("locations", "weights")}
    assert torch.equal(run(form, x | doubled, SHAPES), run(form, x, SHAPES))


# Operands that do not fit: an error that names the argument.

def zeros(*size):
    return torch.zeros(size, dtype=torch.float64)


LOCATIONS = zeros(2, 3, 2, 2, 2, 2)
MISFITS = {
    "value": [zeros(2, 17, 2, 4), zeros(2, 16, 8), zeros(2, 16, 2, 0), zeros(2, 16, 2, 4).long(),
              zeros(2, 16, 2, 4).cfloat()],
    "spatial_shapes": [SHAPES[:1], [(4, 4), (1, 1)], [(-3, -4), (2, 2)], [(3, 4), (-2, -2)], [], None,
                       [(3.0, 4.0), (2, 2)], [(3, 4, 1), (2, 2, 1)], [3, 4, 2, 2], torch.tensor(SHAPES),
                       [torch.tensor((3, 4)), torch.tensor((2, 2))]],
    "sampling_locations": [LOCATIONS[:1], LOCATIONS[:, :, :1], LOCATIONS[:, :, :, :1], LOCATIONS.flatten(3, 4),
                           LOCATIONS[..., :1], LOCATIONS.long(), LOCATIONS.to("meta")],
    "query": [zeros(2, 4, 2, 4), zeros(2, 3, 2, 5), zeros(2, 3, 8), zeros(1, 3, 2, 4), zeros(2, 3, 2, 4).float(),
              zeros(2, 3, 2, 4).long(), zeros(2, 3, 2, 4).to("meta")],
    "key": [zeros(2, 16, 2, 5), zeros(1, 16, 2, 4), zeros(2, 15, 2, 4), zeros(2, 16, 8), zeros(2, 16, 2, 4).half(),
            zeros(2, 16, 2, 4).long(), zeros(2, 16, 2, 4).to("meta")],
    "attention_weights": [zeros(2, 3, 2, 4), zeros(2, 3, 1, 2, 2), zeros(2, 4, 2, 2, 2), zeros(2, 3, 2, 2, 1),
                          zeros(2, 3, 2, 2, 2).long(), zeros(2, 3, 2, 2, 2).to("meta")],
}
KDA_ARGUMENTS = {"query": zeros(2, 3, 2, 4), "key": zeros(2, 16, 2, 4), "value": zeros(2, 16, 2, 4),
                 "spatial_shapes": SHAPES, "sampling_locations": LOCATIONS}
MSDA_ARGUMENTS = {"value": zeros(2, 16, 2, 4), "spatial_shapes": SHAPES, "sampling_locations": LOCATIONS,
                  "attention_weights": zeros(2, 3, 2, 2, 2)}


def describe(x):
    return f"{tuple(x.shape)} {x.dtype} {x.device}" if isinstance(x, torch.Tensor) else str(x)


def misfits(names):
    return [pytest.param(name, misfit, id=f"{name} {describe(misfit)}") for name in names for misfit in MISFITS[name]]


def check_error(operator, arguments, name, misfit):
    operator(**arguments)  # fits
    with pytest.raises(ValueError, match=rf"^{name} |of {name} "):
        operator(**arguments | {name: misfit})


@pytest.mark.parametrize("name, misfit", misfits(KDA_ARGUMENTS))
def test_key_aware_names_what_does_not_fit(each, name, misfit):
    check_error(key_aware_deform_attn, KDA_ARGUMENTS, name, misfit)


@pytest.mark.parametrize("name, misfit", misfits(MSDA_ARGUMENTS))
def test_plain_names_what_does_not_fit(each, name, misfit):
    check_error(ms_deform_attn, MSDA_ARGUMENTS, name, misfit)


def test_levels_and_maps_must_agree(each):
    """As many tokens, but on three maps."""
    with pytest.raises(ValueError, match="sampling_locations .* 3 maps"):
        ms_deform_attn(**MSDA_ARGUMENTS | {"spatial_shapes": [(3, 4), (2, 1), (2, 1)]})


def test_autocast_does_not_turn_integers_into_numbers(each):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="value is torch.int64"):
        ms_deform_attn(**MSDA_ARGUMENTS | {"value": zeros(2, 16, 2, 4).long()})


def test_the_devices_must_agree_with_the_value(each):
    with pytest.raises(ValueError, match="sampling_locations are on cpu, value is on meta"):
        ms_deform_attn(**MSDA_ARGUMENTS | {"value": zeros(2, 16, 2, 4).to("meta")})


# Which implementation runs.

@pytest.fixture
def built_for_cpu(monkeypatch):
    """The library as if it were built without CUDA, and a tensor on a GPU that need not be there."""
    monkeypatch.setattr(native, "_library", types.SimpleNamespace(version=native.VERSION, with_cuda=0))
    functional._warn_once.cache_clear()
    yield
    functional._warn_once.cache_clear()


def fake_cuda_call():
    with FakeTensorMode():
        x = make_operands_without_values("cuda")
        return run("kda", x, SHAPES)


def make_operands_without_values(device):
    return {name: torch.empty(size, device=device) for name, size in [
        ("query", (2, 3, 2, 4)), ("value", (2, 16, 2, 4)), ("locations", LOCATIONS.shape)]}


def test_native_without_the_device_says_how_to_build_it(built_for_cpu):
    with implementation("native"), pytest.raises(UserError, match="built without CUDA") as error:
        fake_cuda_call()
    assert BUILD_COMMAND in str(error.value)


@pytest.mark.skipif(torch.__version__ < "2.5", reason="its fake tensors need the device")
def test_auto_without_the_device_warns_and_goes_on(built_for_cpu):
    with pytest.warns(UserWarning, match="built without CUDA.* nvcc .*: FORCE_CUDA=1 pip install"):
        out = fake_cuda_call()
    assert out.shape == (2, 3, 8) and out.device.type == "cuda"


def test_auto_takes_the_compiled_operators():
    """Their node in the graph of gradients tells."""
    x = make_operands(CASE)
    x["value"].requires_grad_()
    with implementation("native"):
        expected = type(run("kda", x, SHAPES).grad_fn)
    with implementation("torch"):
        other = type(run("kda", x, SHAPES).grad_fn)
    assert type(run("kda", x, SHAPES).grad_fn) is expected is not other


def test_the_environment_chooses(monkeypatch):
    x = make_operands(CASE)
    x["value"].requires_grad_()
    monkeypatch.setenv("DEFORM_ATTN_IMPL", "torch")
    operator = runpy.run_path(functional.__file__)["ms_deform_attn"]
    chosen = operator(x["value"], SHAPES, x["locations"], x["weights"])
    with implementation("torch"):
        assert type(run("msda", x, SHAPES).grad_fn) is type(chosen.grad_fn)
    monkeypatch.setenv("DEFORM_ATTN_IMPL", "fast")
    operator = runpy.run_path(functional.__file__)["ms_deform_attn"]
    with pytest.raises(UserError, match="DEFORM_ATTN_IMPL='fast' must be one of auto, native, torch, gather"):
        operator(x["value"], SHAPES, x["locations"], x["weights"])


def test_the_choice_ends_with_its_context():
    before = functional._chosen
    with pytest.raises(KeyError), implementation("torch"), implementation("native"):
        assert functional._chosen == "native"
        raise KeyError
    assert functional._chosen == before
    message = "no implementation 'natve', only auto, native, torch, gather"
    with pytest.raises(UserError, match=message), implementation("natve"):
        pass
    assert functional._chosen == before


UNBUILT = """
import json, sys, warnings
sys.modules["lite_detr_ops"] = None  # cannot be imported
import torch
from models.ops import implementation, native_available
from tests.models.ops.operands import FORMS, Case, by_definition, make_operands, run

case = Case()
x = make_operands(case)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    errors = [(run(form, x, case.shapes) - by_definition(form, x, case.shapes)).abs().max().item() for form in FORMS]
try:
    with implementation("native"):
        run("kda", x, case.shapes)
except ValueError as error:
    refusal = str(error)
print(json.dumps({"warnings": [str(w.message) for w in caught],
                  "errors": errors, "refusal": refusal, "available": native_available("cpu")}))
"""


def test_without_the_library_one_warning_and_right_results():
    done = subprocess.run([sys.executable, "-c", UNBUILT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    [warning] = result["warnings"]
    assert "cannot be imported" in warning and BUILD_COMMAND in warning
    assert max(result["errors"]) < 1e-9 and not result["available"]
    assert BUILD_COMMAND in result["refusal"]


def test_a_library_of_another_version_is_not_used(monkeypatch):
    other = types.SimpleNamespace(version=native.VERSION + 1, with_cuda=0)
    monkeypatch.setitem(sys.modules, "lite_detr_ops", other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = runpy.run_path(native.__file__)
    assert f"of version {other.version}" in module["problem"] and not module["available"]("cpu")


@each_form
def test_float32_is_near_float64(each, form):
    x = make_operands(Case(((7, 9), (3, 2)), queries=9, channels=16), torch.float32)
    assert_near(differentiate(form, x, [(7, 9), (3, 2)]), in_float64(form, x, [(7, 9), (3, 2)]), 1e-5)
