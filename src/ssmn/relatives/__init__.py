"""The Memory-Native family: other memories behind the same call, `(y, state) = module(x, state)`.

Importing it puts their layers into the table of blocks, so that `layer_types` may name them.
"""

from ssmn.layers.blocks import register_mixer
from ssmn.relatives import amn
from ssmn.relatives.amn import AMN, LRU, AMNState, AssociativeMixer, LinearRecurrentUnit, LRUState
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

amn.register()
register_mixer("hopfield", HopfieldMemory.of)
register_mixer("ntm", build_ntm)
