"""The Memory-Native family: other memories behind the same call, `(y, state) = module(x, state)`.

Importing it puts their layers into the table of blocks, so that `layer_types` may name them.
"""

from ssmn.relatives import amn
from ssmn.relatives.amn import AMN, LRU, AMNState, AssociativeMixer, LinearRecurrentUnit, LRUState

__all__ = ["AMN", "LRU", "AMNState", "AssociativeMixer", "LRUState", "LinearRecurrentUnit"]

amn.register()
