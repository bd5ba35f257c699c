// The CUDA kernels behind two plain functions: no torch headers, so the .cu files compile in seconds.
#pragma once

#include "../problem.h"

struct CUstream_st;

namespace deform_attn {

// Both queue work on the stream of the current device and return nullptr, or the text of the CUDA error.
// query, key, value, output and grad_output are aligned to 16 bytes.
const char* forward_cuda(const Problem& problem, CUstream_st* stream);
const char* backward_cuda(const Problem& problem, const Gradients& gradients, CUstream_st* stream);

}  // namespace deform_attn
