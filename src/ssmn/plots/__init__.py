"""Drawings of measured numbers: colour-blind-safe, labelled with units, light or dark, wide or narrow.

Every function takes plain values (those of `ssmn.demo`, `ssmn.bench` and `ssmn.probes`) and returns a matplotlib
figure; `png` turns one into bytes. Nothing is drawn through pyplot, so there is no global state. `interactive` makes
the same kinds of drawings for a browser.
"""

from ssmn.plots.comparisons import bars, cost_against_length, ranked, spread_lines
from ssmn.plots.look import CAPTIONS, LIGHT, Look, png
from ssmn.plots.memory import forgetting_curves, memory_distance, memory_maps, spectra
from ssmn.plots.readings import along_text, attention_maps
from ssmn.plots.sensors import WAYS, detections, followed, forecast, futures, switched, watched
from ssmn.plots.texts import CONDITIONS, fork, memory_and_speed, second_reading, seed_table, surprise

__all__ = [
    "CAPTIONS",
    "CONDITIONS",
    "LIGHT",
    "WAYS",
    "Look",
    "along_text",
    "attention_maps",
    "bars",
    "cost_against_length",
    "detections",
    "followed",
    "forecast",
    "forgetting_curves",
    "fork",
    "futures",
    "memory_and_speed",
    "memory_distance",
    "memory_maps",
    "png",
    "ranked",
    "second_reading",
    "seed_table",
    "spectra",
    "spread_lines",
    "surprise",
    "switched",
    "watched",
]
