"""What stands between the matrix products, in one pass over memory: CPU kernels with their gradients.

For decoding, the matrix products too.
"""

from hfa.ops.fused.conv import causal_conv
from hfa.ops.fused.flow import FlowWeights, flow_step
from hfa.ops.fused.linear import decodes, linear, pays
from hfa.ops.fused.mlp import feed_forward_step, swiglu_mlp
from hfa.ops.fused.norm import rms_norm
from hfa.ops.fused.packing import pack, packed, packs, unpack

__all__ = [
    "FlowWeights",
    "causal_conv",
    "decodes",
    "feed_forward_step",
    "flow_step",
    "linear",
    "pack",
    "packed",
    "packs",
    "pays",
    "rms_norm",
    "swiglu_mlp",
    "unpack",
]
