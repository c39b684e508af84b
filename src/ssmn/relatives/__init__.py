"""The Memory-Native family: other memories behind the same call, `(y, state) = module(x, state)`.

Importing it puts their layers into the table of blocks, so that `layer_types` may name them.
"""

from ssmn.layers.blocks import register_mixer
from ssmn.relatives.amn import AMN, LRU, AMNState, AssociativeMixer, LinearRecurrentUnit, LRUState, build_amn, build_lru
from ssmn.relatives.hopfield import Hopfield, HopfieldMemory
from ssmn.relatives.ntm import NTM, NeuralTuringMachine, build_ntm

__all__ = [
    "AMN",
    "LRU",
    "NTM",
    "AMNState",
    "AssociativeMixer",
    "Hopfield",
    "HopfieldMemory",
    "LRUState",
    "LinearRecurrentUnit",
    "NeuralTuringMachine",
]

register_mixer("lru", build_lru)
register_mixer("amn", build_amn)
register_mixer("hopfield", HopfieldMemory.of)
register_mixer("ntm", build_ntm)
