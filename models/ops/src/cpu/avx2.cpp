// The kernels for x86 with AVX2. Only this file may use its instructions: a machine without them never enters it.
#if defined(__x86_64__)
#include "target.h"
BEGIN_TARGET("avx2,fma")
#define VECTOR_BYTES 32
#include "dispatch.inl"
END_TARGET
namespace deform_attn {
const CpuKernels& kAvx2 = kKernels;
}
#endif
