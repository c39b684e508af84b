"""The parts of a model; each maps (input, state) to (output, state)."""

from ssmn.layers.attention import SlidingWindowAttention
from ssmn.layers.blocks import Block, SwiGLU, register_mixer
from ssmn.layers.chat import InternalRecurrentChat
from ssmn.layers.encoder import SemanticEncoder
from ssmn.layers.front import RunningFront
from ssmn.layers.gates import DecayGate, ImportanceGate
from ssmn.layers.memory import SynapticMemory
from ssmn.layers.output import OutputMemory
from ssmn.layers.readout import PlasticReadout

__all__ = [
    "Block",
    "DecayGate",
    "ImportanceGate",
    "InternalRecurrentChat",
    "OutputMemory",
    "PlasticReadout",
    "RunningFront",
    "SemanticEncoder",
    "SlidingWindowAttention",
    "SwiGLU",
    "SynapticMemory",
    "register_mixer",
]
