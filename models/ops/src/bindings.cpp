// The operators as torch sees them: checks, memory, and the way to a processor's kernels. Their fakes and
// gradients are in models/ops/native.py, the rules of autocast in models/ops/functional.py.
#include <ATen/ATen.h>
#include <Python.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <tuple>

#include "cpu/run.h"
#include "problem.h"
#ifdef WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/launch.h"
#endif

namespace deform_attn {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// float64 for float64, otherwise float32: the type of locations, weights and everything that is summed up.
at::ScalarType accumulation_type(const Tensor& value) {
  return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

DType dtype_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case at::kFloat: return DType::Float32;
    case at::kDouble: return DType::Float64;
    case at::kHalf: return DType::Float16;
    case at::kBFloat16: return DType::BFloat16;
    default: TORCH_CHECK(false, "value has dtype ", value.scalar_type(), ", which is no floating point type");
  }
}

// Contiguous and, for the GPU's vector loads, aligned to 16 bytes.
Tensor plain(const Tensor& x) {
  const Tensor contiguous = x.contiguous();
  return reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 ? contiguous.clone() : contiguous;
}

// The operands of one call in the layout that the kernels read. Only heads may share locations without a copy.
struct Operands {
  Tensor query, key, value, locations, weights;
  Problem problem{};
  bool empty;

  // CPU kernels read float16 as float32.
  Operands(const Tensor& query_, const MaybeTensor& key_, const Tensor& value_, at::IntArrayRef shapes,
           const Tensor& locations_, const Tensor& weights_, bool differentiate = false)
      : value(readable(value_)), locations(locations_), weights(weights_) {
    TORCH_CHECK(value.dim() == 4, "value must be [B, N, M, D]");
    TORCH_CHECK(locations.dim() == 6 && locations.size(5) == 2, "sampling_locations must be [B, Q, M, L, P, 2]");
    const auto type = accumulation_type(value);
    const int64_t batch = value.size(0), queries = locations.size(1), heads = value.size(2), points = locations.size(4);
    TORCH_CHECK(shapes.size() % 2 == 0 && int64_t(shapes.size()) / 2 == locations.size(3),
                "spatial_shapes must hold a height and a width for each of the L levels of sampling_locations");
    TORCH_CHECK(int64_t(shapes.size()) / 2 <= kMaxLevels, "at most ", kMaxLevels, " levels");
    TORCH_CHECK(locations.size(0) == batch && locations.size(2) == heads, "sampling_locations must fit value");
    for (const Tensor* x : {&query_, &locations_, &weights_})
      TORCH_CHECK(!x->defined() || x->device() == value.device(), "all tensors must be on the device of value");
    TORCH_CHECK(locations.scalar_type() == type, "sampling_locations must be of type ", type);

    problem.batch = batch, problem.queries = queries, problem.heads = heads, problem.points = points;
    problem.channels = value.size(3);
    for (size_t i = 0; i < shapes.size(); i += 2) {
      TORCH_CHECK(shapes[i] >= 0 && shapes[i + 1] >= 0, "spatial_shapes must not be negative");
      problem.add_level(shapes[i], shapes[i + 1]);
    }
    TORCH_CHECK(value.size(1) == problem.tokens && problem.tokens <= std::numeric_limits<int32_t>::max(),
                "value must have the tokens of spatial_shapes");
    problem.dtype = dtype_of(value);
    empty = batch * queries * heads * problem.channels * points * problem.num_levels * problem.tokens == 0;

    value = plain(value);
    problem.value = problem.key = value.const_data_ptr();
    problem.key_is_value = true;
    if (!inner_contiguous(locations)) locations = locations.contiguous();
    problem.locations = locations.const_data_ptr();
    for (int i = 0; i < 3; ++i) problem.location_strides[i] = locations.stride(i);
    problem.key_aware = query_.defined();
    if (problem.key_aware) {
      query = plain(readable(query_));
      const std::array<int64_t, 4> shape{batch, queries, heads, problem.channels};
      TORCH_CHECK(query.sizes() == at::IntArrayRef(shape) && query.scalar_type() == value.scalar_type(),
                  "query must be [B, Q, M, D] in the type of value");
      problem.query = query.const_data_ptr();
      if (key_) {
        key = plain(readable(*key_));
        TORCH_CHECK(
            key.sizes() == value.sizes() && key.scalar_type() == value.scalar_type() && key.device() == value.device(),
            "key must have the shape, type and device of value");
        problem.key = key.const_data_ptr();
        // Views and compilers make two tensors of one: two gradients are then asked for.
        problem.key_is_value = problem.key == problem.value && !differentiate;
      }
    } else {
      weights = weights.contiguous();
      TORCH_CHECK(weights.sizes() == locations.sizes().slice(0, 5) && weights.scalar_type() == type,
                  "attention_weights must be [B, Q, M, L, P] of type ", type);
      problem.attention_weights = weights.const_data_ptr();
    }
  }

  static Tensor readable(const Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kHalf ? x.to(at::kFloat) : x; }
  static bool inner_contiguous(const Tensor& x) {
    return x.stride(5) == 1 && x.stride(4) == 2 && x.stride(3) == 2 * x.size(4);
  }

  Tensor new_output() const {
    const std::array<int64_t, 3> shape{problem.batch, problem.queries, int64_t(problem.heads) * problem.channels};
    return empty ? at::zeros(shape, value.options()) : at::empty(shape, value.options());
  }
  at::TensorOptions accumulation() const { return value.options().dtype(accumulation_type(value)); }
};

void run_forward(const Operands& operands) {
  if (operands.empty) return;
  if (operands.value.is_cpu()) return forward_cpu(operands.problem);
#ifdef WITH_CUDA
  const c10::cuda::CUDAGuard guard(operands.value.device());
  const char* error = forward_cuda(operands.problem, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(!error, "deformable attention on CUDA: ", error);
#endif
}

void run_backward(const Operands& operands, const Gradients& gradients) {
  if (operands.empty) return;
  if (operands.value.is_cpu()) return backward_cpu(operands.problem, gradients);
#ifdef WITH_CUDA
  if (gradients.grad_key || gradients.grad_value)
    at::globalContext().alertNotDeterministic("the gradient of deformable attention's keys and values on CUDA");
  const c10::cuda::CUDAGuard guard(operands.value.device());
  const char* error = backward_cuda(operands.problem, gradients, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(!error, "deformable attention on CUDA, backward: ", error);
#endif
}

// A gradient that the kernels write, or an empty tensor where it is not wanted.
Tensor new_gradient(bool wanted, bool empty, at::IntArrayRef shape, at::TensorOptions options) {
  if (!wanted) return at::empty({0}, options);
  return empty ? at::zeros(shape, options) : at::empty(shape, options);
}
// GPU threads add up the gradients of key and value in the accumulation type.
Tensor new_sum(bool wanted, const Operands& operands) {
  if (operands.value.is_cpu())
    return new_gradient(wanted, operands.empty, operands.value.sizes(), operands.value.options());
  return wanted ? at::zeros(operands.value.sizes(), operands.accumulation()) : at::empty({0}, operands.accumulation());
}
void* pointer(bool wanted, const Tensor& x) { return wanted ? x.mutable_data_ptr() : nullptr; }

std::tuple<Tensor, Tensor> key_aware_deform_attn(const Tensor& query, const MaybeTensor& key, const Tensor& value,
                                                 at::IntArrayRef spatial_shapes, const Tensor& sampling_locations) {
  Operands operands(query, key, value, spatial_shapes, sampling_locations, {});
  Tensor output = operands.new_output();
  Tensor log_sum_exp = at::empty(sampling_locations.sizes().slice(0, 3), operands.accumulation());
  if (operands.empty) log_sum_exp.zero_();
  operands.problem.output = output.mutable_data_ptr();
  operands.problem.log_sum_exp = log_sum_exp.mutable_data_ptr();
  run_forward(operands);
  return {output.to(value.scalar_type()), log_sum_exp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> key_aware_deform_attn_backward(
    const Tensor& grad_output, const Tensor& query, const MaybeTensor& key, const Tensor& value,
    at::IntArrayRef spatial_shapes, const Tensor& sampling_locations, const Tensor& output, const Tensor& log_sum_exp,
    std::array<bool, 4> wanted) {
  Operands operands(query, key, value, spatial_shapes, sampling_locations, {}, true);
  wanted[1] = wanted[1] && key;
  const Tensor grad = plain(Operands::readable(grad_output)), result = plain(Operands::readable(output));
  const Tensor sums = log_sum_exp.contiguous();
  TORCH_CHECK(grad.sizes() == result.sizes() && grad.scalar_type() == operands.value.scalar_type() &&
                  result.numel() == operands.query.numel() &&
                  sums.numel() == operands.query.numel() / std::max<int64_t>(1, query.size(3)),
              "grad_output, output and log_sum_exp must fit the operands");
  operands.problem.output = result.data_ptr();
  operands.problem.log_sum_exp = sums.data_ptr();
  const Tensor grad_query = new_gradient(wanted[0], operands.empty, query.sizes(), operands.value.options());
  const Tensor grad_key = new_sum(wanted[1], operands), grad_value = new_sum(wanted[2], operands);
  const Tensor grad_locations =
      new_gradient(wanted[3], operands.empty, sampling_locations.sizes(), operands.accumulation());
  run_backward(operands, {grad.const_data_ptr(), pointer(wanted[0], grad_query), pointer(wanted[1], grad_key),
                          pointer(wanted[2], grad_value), pointer(wanted[3], grad_locations), nullptr});
  const auto type = value.scalar_type();
  return {grad_query.to(type), grad_key.to(type), grad_value.to(type), grad_locations};
}

Tensor ms_deform_attn(const Tensor& value, at::IntArrayRef spatial_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
  Operands operands({}, {}, value, spatial_shapes, sampling_locations, attention_weights);
  Tensor output = operands.new_output();
  operands.problem.output = output.mutable_data_ptr();
  run_forward(operands);
  return output.to(value.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                                           at::IntArrayRef spatial_shapes,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights,
                                                           std::array<bool, 3> wanted) {
  Operands operands({}, {}, value, spatial_shapes, sampling_locations, attention_weights);
  const Tensor grad = plain(Operands::readable(grad_output));
  TORCH_CHECK(grad.numel() == operands.problem.batch * operands.problem.queries * operands.problem.heads *
                                  operands.problem.channels &&
                  grad.scalar_type() == operands.value.scalar_type(),
              "grad_output must fit the operands");
  const Tensor grad_value = new_sum(wanted[0], operands);
  const Tensor grad_locations =
      new_gradient(wanted[1], operands.empty, sampling_locations.sizes(), operands.accumulation());
  const Tensor grad_weights =
      new_gradient(wanted[2], operands.empty, attention_weights.sizes(), operands.accumulation());
  run_backward(operands, {grad.const_data_ptr(), nullptr, nullptr, pointer(wanted[0], grad_value),
                          pointer(wanted[1], grad_locations), pointer(wanted[2], grad_weights)});
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

TORCH_LIBRARY(deform_attn, m) {
  m.def("key_aware_deform_attn(Tensor query, Tensor? key, Tensor value, SymInt[] spatial_shapes, "
        "Tensor sampling_locations) -> (Tensor, Tensor)");
  m.def("key_aware_deform_attn_backward(Tensor grad_output, Tensor query, Tensor? key, Tensor value, "
        "SymInt[] spatial_shapes, Tensor sampling_locations, Tensor output, Tensor log_sum_exp, bool[4] wanted) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
        "Tensor attention_weights) -> Tensor");
  m.def("ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
        "Tensor sampling_locations, Tensor attention_weights, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_kernels", []() -> std::string { return cpu_kernels(); });
}

void implement(torch::Library& m) {
  m.impl("key_aware_deform_attn", &key_aware_deform_attn);
  m.impl("key_aware_deform_attn_backward", &key_aware_deform_attn_backward);
  m.impl("ms_deform_attn", &ms_deform_attn);
  m.impl("ms_deform_attn_backward", &ms_deform_attn_backward);
}

TORCH_LIBRARY_IMPL(deform_attn, CPU, m) { implement(m); }
#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(deform_attn, CUDA, m) { implement(m); }
#endif

}  // namespace
}  // namespace deform_attn

// Importing the module registers the operators; it has nothing else but the facts of its build.
extern "C" PyMODINIT_FUNC PyInit_lite_detr_ops() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "lite_detr_ops", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
#ifdef WITH_CUDA
  PyModule_AddIntConstant(module, "with_cuda", 1);
#else
  PyModule_AddIntConstant(module, "with_cuda", 0);
#endif
  PyModule_AddIntConstant(module, "version", 2);
  return module;
}
