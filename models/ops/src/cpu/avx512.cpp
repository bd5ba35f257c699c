// The kernels for x86 with AVX-512. Only this file may use its instructions: a machine without them never enters it.
#if defined(__x86_64__)
#include "target.h"
BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")
#define VECTOR_BYTES 64
#include "dispatch.inl"
END_TARGET
namespace deform_attn {
const CpuKernels& kAvx512 = kKernels;
}
#endif
