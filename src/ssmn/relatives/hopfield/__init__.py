"""Hopfield networks: binary, dense and continuous, and the continuous one as the memory of a stream."""

from ssmn.relatives.hopfield.association import HopfieldAssociation, HopfieldLookup, HopfieldPooling
from ssmn.relatives.hopfield.binary import BinaryNetwork, Recall
from ssmn.relatives.hopfield.classical import (
    ClassicalNetwork,
    HebbianNetwork,
    PseudoInverseNetwork,
    StorkeyNetwork,
)
from ssmn.relatives.hopfield.continuous import Retrieval, energy, retrieve
from ssmn.relatives.hopfield.dense import DenseNetwork
from ssmn.relatives.hopfield.member import Hopfield
from ssmn.relatives.hopfield.memory import HopfieldMemory, HopfieldState

__all__ = [
    "BinaryNetwork",
    "ClassicalNetwork",
    "DenseNetwork",
    "HebbianNetwork",
    "Hopfield",
    "HopfieldAssociation",
    "HopfieldLookup",
    "HopfieldMemory",
    "HopfieldPooling",
    "HopfieldState",
    "PseudoInverseNetwork",
    "Recall",
    "Retrieval",
    "StorkeyNetwork",
    "energy",
    "retrieve",
]
