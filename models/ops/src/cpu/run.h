// The operators on a CPU, on the threads of the program that they run in (host.h).
#pragma once

#include "../problem.h"

namespace deform_attn {

// The widest vectors that this processor has and the environment variable DEFORM_ATTN_CPU allows: "avx512", "avx2" or
// "portable". An error of the program's if the variable is none of these.
const char* cpu_kernels();

void forward_cpu(const Problem& problem);
void backward_cpu(const Problem& problem, const Gradients& gradients);

}  // namespace deform_attn
