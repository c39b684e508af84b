"""The Memory-Native family: other memories behind the same call, `(y, state) = module(x, state)`.

Importing it puts their layers into the table of blocks, so that `layer_types` may name them.
"""

from ssmn.layers.blocks import register_mixer
from ssmn.relatives.hopfield import Hopfield, HopfieldMemory

register_mixer("hopfield", HopfieldMemory.of)

__all__ = ["Hopfield"]
