// The operators as OpenVINO sees them: nodes of a model that the CPU runs with the kernels of ../cpu. Loading the library
// with ov::Core::add_extension makes them known, in files of OpenVINO and in ONNX files.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/op/op.hpp>

#include <cstring>
#include <limits>

#include "../cpu/run.h"

namespace deform_attn {
namespace {

// B batch, Q queries, N tokens of all levels, M heads, D channels per head, L levels, P points per level.
//
// What both nodes share. The last two inputs of each are spatial_shapes [L, 2] or [2 L], integers, and
// sampling_locations [B, Q, M, L, P, 2]. The output is [B, Q, M D]. All but spatial_shapes are float32.
class DeformAttn : public ov::op::Op {
 public:
  using ov::op::Op::Op;

  bool visit_attributes(ov::AttributeVisitor&) override { return true; }
  bool has_evaluate() const override { return true; }

 protected:
  static ov::Dimension at(const ov::PartialShape& shape, int axis) {
    return shape.rank().is_static() ? shape[axis] : ov::Dimension();
  }

  void set_shape(size_t value, size_t locations) {
    const ov::PartialShape& tokens = get_input_partial_shape(value);
    const ov::PartialShape& points = get_input_partial_shape(locations);
    NODE_VALIDATION_CHECK(this, tokens.rank().compatible(4), "value must be [B, N, M, D]");
    NODE_VALIDATION_CHECK(this, points.rank().compatible(6), "sampling_locations must be [B, Q, M, L, P, 2]");
    ov::Dimension batch = at(tokens, 0);
    NODE_VALIDATION_CHECK(this, ov::Dimension::merge(batch, batch, at(points, 0)),
                          "sampling_locations must have the batch of value");
    set_output_type(0, ov::element::f32, {batch, at(points, 1), at(tokens, 2) * at(tokens, 3)});
  }

  static const void* floats(const ov::Tensor& x, const ov::Shape& shape, const char* name) {
    OPENVINO_ASSERT(x.get_shape() == shape, name, " has shape ", x.get_shape(), ", it must be ", shape);
    return x.data<const float>();
  }

  // The problem without what the two operators do not share; `empty` where there is nothing to compute.
  static Problem problem_of(const ov::Tensor& value, const ov::Tensor& shapes, const ov::Tensor& locations,
                            ov::Tensor& output, bool& empty) {
    const ov::Shape tokens = value.get_shape(), points = locations.get_shape();
    OPENVINO_ASSERT(tokens.size() == 4 && points.size() == 6 && points[5] == 2 && points[0] == tokens[0] &&
                        points[2] == tokens[2],
                    "value ", tokens, " must be [B, N, M, D] and sampling_locations ", points, " [B, Q, M, L, P, 2]");
    OPENVINO_ASSERT(shapes.get_size() == 2 * points[3] && points[3] <= size_t(kMaxLevels),
                    "spatial_shapes must hold a height and a width for each of the L levels of sampling_locations, at "
                    "most ", kMaxLevels);
    Problem problem{};
    problem.batch = points[0], problem.queries = points[1], problem.heads = int(points[2]);
    problem.points = int(points[4]), problem.channels = int(tokens[3]);
    for (size_t level = 0; level < points[3]; ++level) {
      const int64_t height = integer(shapes, 2 * level), width = integer(shapes, 2 * level + 1);
      OPENVINO_ASSERT(height >= 0 && width >= 0, "spatial_shapes must not be negative");
      OPENVINO_ASSERT(height <= kMost && width <= kMost, "spatial_shapes must be below 2^31");
      problem.add_level(height, width);
      OPENVINO_ASSERT(problem.tokens <= kMost, "spatial_shapes have 2^31 tokens or more");  // before the sum overflows
    }
    OPENVINO_ASSERT(int64_t(tokens[1]) == problem.tokens, "value has ", tokens[1], " tokens, spatial_shapes ",
                    problem.tokens);
    problem.dtype = DType::Float32;
    problem.key = problem.value = value.data<const float>();
    problem.key_is_value = true;
    problem.locations = locations.data<const float>();
    const int64_t per_head = points[3] * points[4] * 2;
    problem.location_strides[0] = int64_t(points[1] * points[2]) * per_head;
    problem.location_strides[1] = int64_t(points[2]) * per_head;
    problem.location_strides[2] = per_head;
    output.set_shape({points[0], points[1], tokens[2] * tokens[3]});
    problem.output = output.data<float>();
    empty = value.get_size() * locations.get_size() == 0;
    if (empty) std::memset(problem.output, 0, output.get_byte_size());
    return problem;
  }

 private:
  static constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

  // The CPU plugin turns 64 bits into 32.
  static int64_t integer(const ov::Tensor& x, size_t index) {
    return x.get_element_type() == ov::element::i64 ? x.data<const int64_t>()[index] : x.data<const int32_t>()[index];
  }
};

// Inputs: query [B, Q, M, D], value [B, N, M, D], and where keys are not the values, key [B, N, M, D]; then the shared ones.
class KeyAwareDeformAttn : public DeformAttn {
 public:
  OPENVINO_OP("KeyAwareDeformAttn", "lite_detr");

  KeyAwareDeformAttn() = default;
  explicit KeyAwareDeformAttn(const ov::OutputVector& inputs) : DeformAttn(inputs) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 4 || get_input_size() == 5, "needs 4 or 5 inputs");
    set_shape(1, get_input_size() - 1);
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<KeyAwareDeformAttn>(inputs);
  }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const size_t last = inputs.size() - 1;
    bool empty;
    Problem problem = problem_of(inputs[1], inputs[last - 1], inputs[last], outputs[0], empty);
    const auto queries = size_t(problem.queries), heads = size_t(problem.heads), channels = size_t(problem.channels);
    problem.key_aware = true;
    problem.query = floats(inputs[0], {size_t(problem.batch), queries, heads, channels}, "query");
    if (last == 4) {
      problem.key = floats(inputs[2], inputs[1].get_shape(), "key");
      problem.key_is_value = problem.key == problem.value;
    }
    if (!empty) forward_cpu(problem);
    return true;
  }
};

// Inputs: value [B, N, M, D], attention_weights [B, Q, M, L, P], then the shared ones.
class MSDeformAttn : public DeformAttn {
 public:
  OPENVINO_OP("MSDeformAttn", "lite_detr");

  MSDeformAttn() = default;
  explicit MSDeformAttn(const ov::OutputVector& inputs) : DeformAttn(inputs) { constructor_validate_and_infer_types(); }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 4, "needs 4 inputs");
    set_shape(0, 3);
  }
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<MSDeformAttn>(inputs);
  }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    bool empty;
    Problem problem = problem_of(inputs[0], inputs[2], inputs[3], outputs[0], empty);
    const ov::Shape points = inputs[3].get_shape();
    problem.attention_weights = floats(inputs[1], {points.begin(), points.begin() + 5}, "attention_weights");
    if (!empty) forward_cpu(problem);
    return true;
  }
};

// Makes a node of the ONNX node of the same name in the domain lite_detr.
template <class Node>
ov::Extension::Ptr from_onnx() {
  const auto convert = [](const ov::frontend::NodeContext& context) {
    ov::OutputVector inputs;
    for (size_t i = 0; i < context.get_input_size(); ++i) inputs.push_back(context.get_input(int(i)));
    return std::make_shared<Node>(inputs)->outputs();
  };
  return std::make_shared<ov::frontend::onnx::ConversionExtension>(Node::get_type_info_static().name, "lite_detr",
                                                                   convert);
}

std::vector<ov::Extension::Ptr> nodes() {
  cpu_kernels();  // a bad DEFORM_ATTN_CPU is an error here: OpenVINO swallows those of nodes of dynamic size
  return {std::make_shared<ov::OpExtension<KeyAwareDeformAttn>>(), std::make_shared<ov::OpExtension<MSDeformAttn>>(),
          from_onnx<KeyAwareDeformAttn>(), from_onnx<MSDeformAttn>()};
}

}  // namespace
}  // namespace deform_attn

OPENVINO_CREATE_EXTENSIONS(deform_attn::nodes());
