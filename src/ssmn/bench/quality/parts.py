"""All parts of the quality benchmark."""

from __future__ import annotations

from ssmn.bench.quality import (
    anomalies,
    attribution,
    chaos,
    classical,
    classification,
    distance,
    encoder,
    forecasting,
    forgetting,
    hops,
    lm,
    output_memory,
    recall,
    reinforcement,
    second_reading,
    shakespeare,
    sparse,
    system_identification,
    updates,
)
from ssmn.bench.quality.frame import Part

TEXT = (lm, second_reading, shakespeare, output_memory, encoder)
MEMORY = (recall, hops, distance, sparse, forgetting, attribution)
SERIES = (system_identification, forecasting, classical, chaos, anomalies, classification, updates)
CONTROL = (reinforcement,)

PARTS: dict[str, Part] = {module.PART.name: module.PART for module in (*TEXT, *MEMORY, *SERIES, *CONTROL)}
"""By name, in the order in which they are run."""
