"""Deformable attention operators: one function each in front of their implementations."""
from models.ops.functional import key_aware_deform_attn, ms_deform_attn

__all__ = ["key_aware_deform_attn", "ms_deform_attn"]
