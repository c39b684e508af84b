"""All parts of the quality benchmark."""

from __future__ import annotations

from ssmn.bench.quality import (
    algorithms,
    anomalies,
    attribution,
    chaos,
    classical,
    classification,
    distance,
    encoder,
    family,
    forecasting,
    forgetting,
    hopfield,
    hops,
    irregular,
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
FAMILY = (family, hopfield, algorithms, irregular)

PARTS: dict[str, Part] = {module.PART.name: module.PART for module in (*TEXT, *MEMORY, *SERIES, *CONTROL, *FAMILY)}
"""By name, in the order in which they are run."""
