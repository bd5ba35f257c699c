// The operators on a CPU, on torch's threads.
#pragma once

#include "../problem.h"

namespace deform_attn {

void forward_cpu(const Problem& problem);
void backward_cpu(const Problem& problem, const Gradients& gradients);

}  // namespace deform_attn
