"""What stands between the matrix products, each in one pass over memory: CPU kernels with their gradients."""

from hfa.ops.fused.conv import causal_conv
from hfa.ops.fused.mlp import swiglu_mlp
from hfa.ops.fused.norm import rms_norm

__all__ = ["causal_conv", "rms_norm", "swiglu_mlp"]
