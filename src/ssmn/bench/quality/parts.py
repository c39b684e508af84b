"""All parts of the quality benchmark."""

from __future__ import annotations

from ssmn.bench.quality.control import reinforcement
from ssmn.bench.quality.family import algorithms, comparison, hopfield, irregular
from ssmn.bench.quality.frame import Part
from ssmn.bench.quality.memory import attribution, distance, forgetting, hops, recall, sparse
from ssmn.bench.quality.series import (
    anomalies,
    chaos,
    classical,
    classification,
    forecasting,
    system_identification,
    updates,
)
from ssmn.bench.quality.text import encoder, lm, output_memory, second_reading, shakespeare

TEXT = (lm, second_reading, shakespeare, output_memory, encoder)
MEMORY = (recall, hops, distance, sparse, forgetting, attribution)
SERIES = (system_identification, forecasting, classical, chaos, anomalies, classification, updates)
CONTROL = (reinforcement,)
FAMILY = (comparison, hopfield, algorithms, irregular)

PARTS: dict[str, Part] = {module.PART.name: module.PART for module in (*TEXT, *MEMORY, *SERIES, *CONTROL, *FAMILY)}
"""By name, in the order in which they are run."""
