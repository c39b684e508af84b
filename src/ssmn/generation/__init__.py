"""Writing: the decode loop and its parts, from logits to text."""

from ssmn.generation.loop import Step, TextOut, generate
from ssmn.generation.sampling import Sampler, Sampling
from ssmn.generation.stops import StopStrings

__all__ = ["Sampler", "Sampling", "Step", "StopStrings", "TextOut", "generate"]
