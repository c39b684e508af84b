"""Writing: from logits to a token, to a text, to a conversation."""

from ssmn.generation.conversation import Answer, Conversation
from ssmn.generation.loop import Step, TextOut, generate, read
from ssmn.generation.sampling import Sampler, Sampling
from ssmn.generation.stops import StopStrings
from ssmn.generation.turns import Turns

__all__ = [
    "Answer",
    "Conversation",
    "Sampler",
    "Sampling",
    "Step",
    "StopStrings",
    "TextOut",
    "Turns",
    "generate",
    "read",
]
