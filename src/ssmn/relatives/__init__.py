"""The Memory-Native family: other memories behind the same call, `(y, state) = module(x, state)`.

Importing it puts their layers into the table of blocks, so that `layer_types` may name them.
"""

from ssmn.relatives import amn
from ssmn.layers.blocks import register_mixer
from ssmn.relatives.amn import AMN, LRU, AMNState, AssociativeMixer, LinearRecurrentUnit, LRUState
from ssmn.relatives.hopfield import Hopfield, HopfieldMemory

__all__ = [
    "AMN",
    "LRU",
    "AMNState",
    "AssociativeMixer",
    "Hopfield",
    "HopfieldMemory",
    "LRUState",
    "LinearRecurrentUnit",
]

amn.register()
register_mixer("hopfield", HopfieldMemory.of)
