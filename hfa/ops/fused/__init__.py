"""What stands between the matrix products, in one pass over memory: CPU kernels with their gradients.

For decoding, the matrix products too.
"""

from hfa.ops.fused.conv import causal_conv
from hfa.ops.fused.flow import FlowWeights, flow_step
from hfa.ops.fused.linear import are_few, decodes, linear
from hfa.ops.fused.mlp import feed_forward_step, swiglu_mlp
from hfa.ops.fused.norm import rms_norm

__all__ = [
    "FlowWeights",
    "are_few",
    "causal_conv",
    "decodes",
    "feed_forward_step",
    "flow_step",
    "linear",
    "rms_norm",
    "swiglu_mlp",
]
