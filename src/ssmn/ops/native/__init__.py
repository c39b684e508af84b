"""The compiled kernels as torch custom ops.

The custom ops of the namespace `ssmn` (`memory`, `window_attention`, `linear_cross_entropy`, `scan` and `ntm`) mirror
the functions of `csrc/include/ssmn.h`, which is their manual; the functions here are the way to call them. The kernels
compute in float32; the memory, the window attention and the cross-entropy also take bfloat16 as it is.
"""

from ssmn.ops.native.calls import refusal
from ssmn.ops.native.cross_entropy import linear_cross_entropy
from ssmn.ops.native.memory import read, remember, write
from ssmn.ops.native.ntm import turing_machine
from ssmn.ops.native.scan import scan
from ssmn.ops.native.window import attend

__all__ = ["attend", "linear_cross_entropy", "read", "refusal", "remember", "scan", "turing_machine", "write"]
