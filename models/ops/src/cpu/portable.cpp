// The kernels for any processor whose compiler knows vectors of 16 bytes (SSE2, NEON), and for float64.
#define VECTOR_BYTES 16
#include "dispatch.inl"
namespace deform_attn {
const CpuKernels& kPortable = kKernels;
}
