"""The Memory-Native family: other memories behind the same call, `(y, state) = module(x, state)`.

Importing it puts their layers into the table of blocks, so that `layer_types` may name them.
"""

from ssmn.layers.blocks import register_mixer
from ssmn.relatives.ntm import NTM, NeuralTuringMachine, build_ntm

register_mixer("ntm", build_ntm)

__all__ = ["NTM", "NeuralTuringMachine"]
