"""Deformable attention operators: one function each in front of their implementations."""
from models.ops.functional import implementation, key_aware_deform_attn, ms_deform_attn
from models.ops.native import available as native_available
from models.ops.native import cpu_kernels

__all__ = ["cpu_kernels", "implementation", "key_aware_deform_attn", "ms_deform_attn", "native_available"]
