"""The compiled operators against the plain ones in float64, on every set of CPU instructions, and on a GPU if one is
there."""
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from measure.model_cost import FORMULAS
from models.layers.deform_attn import KeyAwareDeformAttn, MSDeformAttn
from models.ops import cpu_kernels, implementation, native_available
from tests.models.ops.operands import (
    FORMS,
    Case,
    assert_near,
    differentiate,
    in_float64,
    make_operands,
    run,
)

OPS = torch.ops.deform_attn
PATHS = ("portable", "avx2", "avx512")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
HALF = [torch.bfloat16, torch.float16]

# Dense copies of the tokens serve many queries; few are answered from the tensors as they lie.
MANY = Case(((6, 9), (3, 4)), queries=37, channels=16, points=3)
FEW = Case(((20, 30), (10, 15)), queries=9, channels=16, points=3)
by_queries = pytest.mark.parametrize("case", [MANY, FEW], ids=["many", "few"])
each_form = pytest.mark.parametrize("form", FORMS)
each_gradient = pytest.mark.parametrize("form, name", [(form, name) for form, names in FORMS.items() for name in names])

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
def native():
    """Fails, as it should, where the operators are not built."""
    with implementation("native"):
        yield


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """One set of CPU instructions."""
    monkeypatch.setenv("DEFORM_ATTN_CPU", request.param)
    if cpu_kernels() != request.param:
        pytest.skip(f"this processor has no {request.param}")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


def check(form, case, dtype, device="cpu", function=run):
    """Output and all gradients. A location in float32 is exact to a part of the whole map."""
    x = make_operands(case, dtype, device)
    longest = max(max(shape) for shape in case.shapes)
    tolerance = max(TOLERANCE[dtype], 0 if dtype == torch.float64 else 2e-7 * longest)
    results = differentiate(form, x, case.shapes, function=function)
    assert all(results[name].dtype == x[name].dtype for name in FORMS[form]) and results["output"].dtype == dtype
    assert_near(results, in_float64(form, x, case.shapes), tolerance)


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 30, 32, 48, 64, 71])
@by_queries
@each_form
def test_channels(path, form, case, channels):
    sized = Case(case.shapes, case.queries, channels, points=case.points)
    for dtype in (torch.float32, torch.bfloat16):
        check(form, sized, dtype)


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 32, 71])
@by_queries
@each_form
def test_float64(form, case, channels):
    check(form, Case(case.shapes, case.queries, channels, points=case.points), torch.float64)


@pytest.mark.parametrize("channels", [7, 16])
@by_queries
@each_form
def test_float16(path, form, case, channels):
    check(form, Case(case.shapes, case.queries, channels, points=case.points), torch.float16)


@pytest.mark.parametrize("points, levels", [(1, 1), (1, 5), (3, 1), (3, 4), (4, 2), (17, 1), (4, 5), (2, 16), (1, 16)])
@each_form
def test_points_and_levels(path, form, points, levels):
    """Fewer than a vector holds, as many, and more."""
    shapes = tuple((2 + i % 3, 3 + i % 4) for i in range(levels))
    check(form, Case(shapes, 7, 16, points=points), torch.float32)


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 5, 31, 32, 33, 65])
@each_form
def test_numbers_of_queries(path, form, queries):
    check(form, Case(((20, 30),), queries, 16, heads=1, batch=3), torch.float32)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1)], ids=str)
@each_form
def test_long_maps(path, form, shape):
    check(form, Case((shape,), 50, 16, heads=1, batch=1), torch.float32)


@pytest.mark.slow
@each_form
def test_a_huge_map(form):
    check(form, Case(((900, 700),), 50, 16, heads=1, batch=1), torch.float32)


@each_form
def test_more_levels_than_the_kernels_hold(form):
    case = Case(((1, 2),) * 17)
    with pytest.raises(ValueError, match="spatial_shapes has 17 maps, .* at most 16"):
        run(form, make_operands(case), case.shapes)
    with implementation("auto"):
        check(form, case, torch.float64)


@pytest.mark.parametrize("form, name", [("kda", "query"), ("kda_keys", "query"), ("msda", "weights")])
def test_forward_mode_derivatives_are_those_of_the_plain_operators(form, name):
    """The compiled ones have none, and say so rather than let it be 0. Nor has torch's grid_sample, for the others."""
    x = make_operands(MANY)
    tangent = torch.randn_like(x[name])

    def derivative():
        return torch.func.jvp(lambda leaf: run(form, x | {name: leaf}, MANY.shapes), (x[name],), (tangent,))[1]

    with pytest.raises(ValueError, match="no forward-mode derivative"):
        derivative()
    with implementation("auto"):
        result = derivative()
    ahead, behind = (run(form, x | {name: x[name] + step * tangent}, MANY.shapes) for step in (1e-6, -1e-6))
    assert_near({"output": result}, {"output": (ahead - behind) / 2e-6}, 1e-6)


@each_form
def test_no_gradient_is_lost_where_many_points_meet(path, form):
    case = Case(((2, 2),), 40, 8, heads=1, points=6)
    check(form, case, torch.float32)


def test_paths_differ(monkeypatch):
    """They add up in another order, so equal bits would mean that the variable does nothing."""
    x = make_operands(MANY, torch.float32)
    gradients = {}
    for name in PATHS:
        monkeypatch.setenv("DEFORM_ATTN_CPU", name)
        gradients[cpu_kernels()] = differentiate("kda", x, MANY.shapes)["query"]
    assert "portable" in gradients
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(gradients.values(), 2))


def test_a_path_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("DEFORM_ATTN_CPU", "AVX2")
    with pytest.raises(ValueError, match="DEFORM_ATTN_CPU='AVX2' must be one of avx512, avx2, portable"):
        run("kda", make_operands(MANY), MANY.shapes)


@pytest.mark.parametrize("case", [Case(((3, 4), (2, 2)), channels=3), Case(((9, 9), (2, 2)), 2, 2)],
                         ids=["many", "few"])
@each_form
def test_gradients_are_those_of_differences(form, case):
    x, names = make_operands(case), FORMS[form]
    inputs = [x[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *args: run(form, dict(zip(names, args)) | {
        name: x[name] for name in x.keys() - set(names)}, case.shapes), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@by_queries
@each_gradient
def test_a_gradient_alone_is_that_of_all(path, form, name, case, dtype):
    x = make_operands(case, dtype)
    expected = differentiate(form, x, case.shapes)[name].double()
    alone = differentiate(form, x, case.shapes, wanted=(name,))
    assert alone.keys() == {"output", name}
    assert_near({name: alone[name]}, {name: expected}, 1e-6)


@pytest.mark.parametrize("name", ["query", "key", "value", "locations"])
def test_all_gradients_but_one(name):
    x = make_operands(FEW, torch.float32)
    expected = differentiate("kda_keys", x, FEW.shapes)
    others = tuple(n for n in FORMS["kda_keys"] if n != name)
    results = differentiate("kda_keys", x, FEW.shapes, wanted=others)
    assert_near(results, {n: expected[n].double() for n in ("output", *others)}, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@by_queries
@each_form
def test_results_are_the_same_on_any_number_of_threads(path, two_threads, form, case, dtype):
    sized = Case(case.shapes, 40 * case.queries if case is MANY else 75, 16)
    x = make_operands(sized, dtype)
    first = differentiate(form, x, sized.shapes)
    again = differentiate(form, x, sized.shapes)
    two_threads()
    on_two = differentiate(form, x, sized.shapes)
    for name, expected in first.items():
        assert torch.equal(again[name], expected) and torch.equal(on_two[name], expected), name


def test_locations_that_heads_share(path):
    """They are read where they lie, with a stride of 0."""
    for case in (MANY, FEW):
        x = make_operands(case, torch.float32)
        shared = x["locations"][:, :, :1].expand(x["locations"].shape)
        for form in FORMS:
            expected = run(form, x | {"locations": shared.contiguous()}, case.shapes)
            assert torch.equal(run(form, x | {"locations": shared}, case.shapes), expected)


@each_form
def test_a_second_derivative_is_refused(form):
    """Rather than taken for zero."""
    x = make_operands(MANY)
    leaves = [x[name].requires_grad_() for name in FORMS[form]]
    gradients = torch.autograd.grad(run(form, x, MANY.shapes).square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        sum(gradient.square().sum() for gradient in gradients).backward()


# What torch knows of the operators.

def operator_arguments(form, x, shapes):
    """Of the operator itself, and of the one for its gradients."""
    flat = [size for shape in shapes for size in shape]
    if form == "msda":
        forward = x["value"], flat, x["locations"], x["weights"]
        return forward, (OPS.ms_deform_attn(*forward).detach(), *forward, [True, True, True])
    forward = x["query"], x["key"] if form == "kda_keys" else None, x["value"], flat, x["locations"]
    output, log_sum_exp = (tensor.detach() for tensor in OPS.key_aware_deform_attn(*forward))
    return forward, (output, *forward, output, log_sum_exp, [True, form == "kda_keys", True, True])


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in HALF)])
@each_form
def test_operators_are_registered_as_torch_wants(form, dtype):
    case = Case(channels=3)
    name = "ms_deform_attn" if form == "msda" else "key_aware_deform_attn"
    x = make_operands(case, dtype)
    backward = operator_arguments(form, x, case.shapes)[1]
    torch.library.opcheck(getattr(OPS, f"{name}_backward").default, backward)
    for leaf in FORMS[form]:
        x[leaf].requires_grad_()
    torch.library.opcheck(getattr(OPS, name).default, operator_arguments(form, x, case.shapes)[0])


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_unwanted_gradients_have_the_shapes_that_torch_expects(wanted):
    x = make_operands(Case())
    backward = operator_arguments("msda", x, Case().shapes)[1][:-1]
    torch.library.opcheck(OPS.ms_deform_attn_backward.default, (*backward, list(wanted)))
    query_and_key = [wanted[0], wanted[1], wanted[2], False]
    backward = operator_arguments("kda_keys", x, Case().shapes)[1][:-1]
    torch.library.opcheck(OPS.key_aware_deform_attn_backward.default, (*backward, query_and_key))


@pytest.mark.parametrize("form, backend", [*((form, "aot_eager") for form in FORMS), ("kda", "inductor")])
def test_compiled(form, backend):
    """Forward and backward in one graph, which serves another batch size too."""
    torch.compiler.reset()

    def scaled(form, x, shapes):
        return run(form, {**x, "value": 2 * x["value"]}, shapes) + 1

    compiled = torch.compile(scaled, fullgraph=True, backend=backend, dynamic=True)
    for batch in (7, 5):  # 7: no other size is taken for it
        case = Case(MANY.shapes, 11, 8, batch=batch)
        x = make_operands(case, torch.float32)
        with torch._dynamo.config.patch(error_on_recompile=batch == 5):
            results = differentiate(form, x, case.shapes, function=compiled)
        torch.testing.assert_close(results, differentiate(form, x, case.shapes, function=scaled))


def test_compiled_with_a_key_that_is_a_copy_of_the_value():
    """A compiler makes one tensor of both; each still has its own gradient."""
    torch.compiler.reset()

    def twice(form, x, shapes):
        return run("kda_keys", {**x, "key": x["value"].clone(), "value": x["value"].clone()}, shapes)

    x = make_operands(MANY)
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(twice, fullgraph=True, backend=backend)
        torch.testing.assert_close(differentiate("kda", x, MANY.shapes, function=compiled),
                                   differentiate("kda", x, MANY.shapes))


@pytest.mark.parametrize("half", HALF)
def test_compiled_under_autocast(half):
    torch.compiler.reset()
    x = make_operands(MANY, torch.float32)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", half):
        torch.testing.assert_close(differentiate("kda", x, MANY.shapes, function=compiled),
                                   differentiate("kda", x, MANY.shapes))


@pytest.mark.parametrize("options", [{}, {"proj_key": True}, {"same_loc": True}], ids=str)
def test_exported_module(options):
    shapes, dim = [(6, 4), (3, 2)], 8
    module = KeyAwareDeformAttn(dim, len(shapes), 2, 2, **options)

    def inputs(batch):
        generator = torch.Generator().manual_seed(batch)
        query, reference, memory = (torch.rand(batch, *size, generator=generator)
                                    for size in ((5, dim), (5, len(shapes), 2), (30, dim)))
        return query, reference, memory, shapes

    batch = {0: torch.export.Dim("batch")}
    dynamic = {"query": batch, "reference": batch, "memory": batch, "shapes": [(None, None)] * len(shapes)}
    program = torch.export.export(module, inputs(2), dynamic_shapes=dynamic)
    assert any("deform_attn.key_aware_deform_attn" in str(node.target) for node in program.graph.nodes)
    for size in (2, 7):
        torch.testing.assert_close(program.module()(*inputs(size)), module(*inputs(size)))


@each_form
def test_meta_tensors(form):
    x = {name: tensor.to("meta") for name, tensor in make_operands(MANY, torch.bfloat16).items()}
    leaves = [x[name].requires_grad_() for name in FORMS[form]]
    output = run(form, x, MANY.shapes)
    assert output.shape == (MANY.batch, MANY.queries, MANY.heads * MANY.channels) and output.is_meta
    assert output.dtype == torch.bfloat16
    for leaf, gradient in zip(leaves, torch.autograd.grad(output, leaves, torch.empty_like(output))):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype and gradient.is_meta


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("form, multiply_adds, of_samples", [("kda", 6, 4), ("kda_keys", 10, 8), ("msda", 5, 4)])
def test_flops(form, multiply_adds, of_samples, device):
    """Two each. Of the plain operators torch counts the samples alone."""
    x = make_operands(MANY, torch.float32, device)
    sampled = MANY.batch * MANY.queries * MANY.heads * len(MANY.shapes) * MANY.points * MANY.channels
    for name, expected in (("native", multiply_adds), ("torch", of_samples)):
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with counter, implementation(name):
            run(form, x, MANY.shapes)
        assert counter.get_total_flops() == 2 * expected * sampled


@pytest.mark.parametrize("kind", [KeyAwareDeformAttn, MSDeformAttn])
def test_flops_of_a_module_are_those_of_its_products_too(kind):
    module = kind(8, 1, 2, 3).to("meta")
    inputs = (torch.empty(1, *size, device="meta") for size in ((5, 8), (5, 1, 2), (12, 8)))
    counter = FlopCounterMode(display=False)
    with counter:
        module(*inputs, [(3, 4)])
    sampled, weights = 5 * 3 * 8, 8 if kind is KeyAwareDeformAttn else 2 * 3  # query_proj, or attention_weights
    products = 5 * 8 * (8 + weights + 2 * 3 * 2) + 12 * 8 * 8
    assert counter.get_total_flops() == 2 * (products + (6 if kind is KeyAwareDeformAttn else 5) * sampled)


# On a GPU.

GPU = "cuda"
on_cuda = pytest.mark.skipif(not (torch.cuda.is_available() and native_available("cuda")),
                             reason="needs a GPU and the operators built for it")
MAPS = ((40, 50), (20, 25), (10, 13), (5, 7))
CUDA_CASES = {"tokens": Case(MAPS, 2665, 32, heads=8, points=4),
              "tokens of the last levels": Case(MAPS, 665, 32, heads=8, points=4, batch=7),
              "many queries": Case(((9, 8),), 40000, 16, heads=1, batch=1),
              "few tokens": Case(((14, 21), (7, 11), (4, 6), (2, 3)), 401, 32, heads=8, points=4),
              "few": Case(((25, 42), (13, 21)), 9, 32, points=4), "one head": Case(((25, 42),), 300, 64, heads=1),
              "one channel": Case(((9, 8),), 30, 1), "7 channels": Case(((9, 8), (1, 1)), 30, 7, points=3),
              "30 channels": Case(((9, 8), (4, 4)), 80, 30, points=1), "71 channels": Case(((9, 8),), 12, 71),
              "16 levels": Case(((3, 4),) * 16, 50, 16, points=1), "many points": Case(((9, 8),), 20, 32, points=40)}
# The kernels for many queries, those for few, and those for any number of channels.
ONE_OF_EACH = [CUDA_CASES[name] for name in ("tokens", "few", "7 channels")]


def test_the_gpu_cases_reach_every_kernel():
    """FEW_QUERIES of arguments.cuh divides them. Queries that are tokens are visited in tiles."""
    many = [name for name, case in CUDA_CASES.items() if case.batch * case.queries * case.heads >= 32768]
    assert many == ["tokens", "tokens of the last levels", "many queries"]
    sizes = [h * w for h, w in MAPS]
    assert CUDA_CASES["tokens"].queries == sum(sizes) and CUDA_CASES[many[1]].queries == sum(sizes[1:])


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("case", CUDA_CASES.values(), ids=CUDA_CASES)
@each_form
def test_cuda_agrees_with_float64_on_the_cpu(form, case, dtype):
    check(form, case, dtype, GPU)


@on_cuda
@each_gradient
def test_cuda_gradient_alone(form, name):
    for case in ONE_OF_EACH:
        x = make_operands(case, torch.float32, GPU)
        alone = differentiate(form, x, case.shapes, wanted=(name,))
        assert_near({name: alone[name]}, {name: in_float64(form, x, case.shapes)[name]}, 1e-5)


@on_cuda
@each_form
def test_cuda_autocast(form):
    x = make_operands(CUDA_CASES["few"], torch.float32, GPU)
    rounded = {name: t.half() if name in ("query", "key", "value") else t for name, t in x.items()}
    with torch.autocast(GPU, torch.float16):
        results = differentiate(form, x, CUDA_CASES["few"].shapes)
    assert results["output"].dtype == torch.float16 and results["value"].dtype == torch.float32
    assert_near(results, in_float64(form, rounded, CUDA_CASES["few"].shapes), TOLERANCE[torch.float16])


@on_cuda
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@each_form
def test_cuda_compiled(form, backend):
    torch.compiler.reset()
    check(form, CUDA_CASES["few"], torch.float32, GPU, torch.compile(run, fullgraph=True, backend=backend))


@on_cuda
@each_form
def test_cuda_locations_that_heads_share(form):
    for case in ONE_OF_EACH:
        x = make_operands(case, torch.float32, GPU)
        x["locations"] = x["locations"][:, :, :1].expand(x["locations"].shape)
        expected = run(form, x | {"locations": x["locations"].contiguous()}, case.shapes)
        torch.testing.assert_close(run(form, x, case.shapes), expected)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
@each_form
def test_cuda_operands_that_start_anywhere_in_memory(form, case, dtype):
    def shift(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    def shifted(form, x, shapes):
        return run(form, {name: shift(t) for name, t in x.items()}, shapes)

    x = make_operands(case, dtype, GPU)
    assert torch.equal(shifted(form, x, case.shapes), run(form, x, case.shapes))
    check(form, case, dtype, GPU, shifted)


@on_cuda
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
@each_form
def test_cuda_gradient_of_another_layout(form, case):
    """Batch last in memory."""
    x = make_operands(case, torch.float32, GPU)
    leaves = [x[name].requires_grad_() for name in FORMS[form]]
    output = run(form, x, case.shapes)
    gradient = torch.randn_like(output)
    turned = gradient.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert case.batch == 1 or not turned.is_contiguous()
    for actual, expected in zip(torch.autograd.grad(output, leaves, turned, retain_graph=True),
                                torch.autograd.grad(output, leaves, gradient)):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@on_cuda
@each_form
def test_cuda_operators_are_registered_as_torch_wants(form):
    case = Case(channels=32)
    name = "ms_deform_attn" if form == "msda" else "key_aware_deform_attn"
    x = make_operands(case, torch.float32, GPU)
    backward = operator_arguments(form, x, case.shapes)[1]
    torch.library.opcheck(getattr(OPS, f"{name}_backward").default, backward)
    for leaf in FORMS[form]:
        x[leaf].requires_grad_()
    torch.library.opcheck(getattr(OPS, name).default, operator_arguments(form, x, case.shapes)[0])


@on_cuda
@each_form
def test_cuda_gradients_that_atomics_add_up_are_told_to_torch(form):
    x = make_operands(CUDA_CASES["few"], torch.float32, GPU)
    torch.use_deterministic_algorithms(True)
    try:
        differentiate(form, x, CUDA_CASES["few"].shapes, wanted=("locations",))
        with pytest.raises(RuntimeError, match="deterministic"):
            differentiate(form, x, CUDA_CASES["few"].shapes, wanted=("value",))
    finally:
        torch.use_deterministic_algorithms(False)


@on_cuda
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
@each_form
def test_cuda_locations_far_away(form, case):
    x = make_operands(case, torch.float32, GPU)
    for i, far in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e9)):
        x["locations"][:, i::7, :, :, 0, i % 2] = far
    results = differentiate(form, x, case.shapes)
    x["locations"] = torch.where(x["locations"].abs() < 1e6, x["locations"], -9.0)
    assert all(tensor.isfinite().all() for tensor in results.values())
    assert_near(results, in_float64(form, x, case.shapes), 1e-5)


@on_cuda
@pytest.mark.parametrize("case", [Case(queries=0), Case(batch=0), Case(((0, 3), (2, 2))), Case(((0, 3), (0, 0))),
                                  Case(((0, 10**8), (1, 1)))], ids=str)
@each_form
def test_cuda_empty(form, case):
    x = make_operands(case, torch.float32, GPU)
    results = differentiate(form, x, case.shapes)
    on_cpu = differentiate(form, {name: tensor.cpu() for name, tensor in x.items()}, case.shapes)
    torch.testing.assert_close({name: tensor.cpu() for name, tensor in results.items()}, on_cpu)
