"""The drawings of a report as figures for files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmn.plots.look import LIGHT, Look
from ssmn.plots.memory import forgetting_curves, memory_distance, memory_maps, spectra
from ssmn.plots.readings import along_text, attention_maps
from ssmn.plots.report.parting import Parting
from ssmn.plots.report.reading import Holdings, Reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS = 64
"""Tokens along a text that have room for their names."""

_MOST = 6
"""Memories in one drawing."""


def pictures(
    held: Holdings, reading: Reading | None = None, look: Look = LIGHT, *, parting: Parting | None = None
) -> dict[str, Figure]:
    """The drawings of a state, or of a text that was read, by the name of their file.

    Args:
        held: What the state holds; of a reading, its `holdings`.
        reading: What the model did with a text; None = a state alone.
        look: Where they are to be seen.
        parting: How the stream and a fork that read another text drifted apart, if there was one.

    Returns:
        `memory` and `spectra` (of the first six heads, if the state has a memory), `others` (of other layers'
        memories, the first six); of a text also `along-text` (its
        last 64 tokens), `attention` (the first memory and the window nearest to it) and `forgetting` (the first
        head); of a parting `distance`.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.plots.report import holdings, pictures
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=9)
        >>> _, state = ssmn.TextSSMN(config)(torch.randint(16, (1, 4)))
        >>> list(pictures(holdings(state)))
        ['memory', 'spectra']
    """
    drawn: dict[str, Figure] = {}
    if parting is not None:
        distances = {name: row.tolist() for name, row in list(parting.distances.items())[:_MOST]}
        drawn["distance"] = memory_distance(parting.positions.tolist(), distances, parting.fork, look)
    heads = held.heads[:_MOST]
    if heads:
        drawn["memory"] = memory_maps({head.name: head.memory for head in heads}, look)
        drawn["spectra"] = spectra({head.name: head.spectrum.tolist() for head in heads}, look)
    if held.parts:
        drawn["others"] = memory_maps({part.name: part.values for part in held.parts[:_MOST]}, look, "other_maps")
    if reading is None:
        return drawn
    words = reading.pieces[-_WORDS:]
    rows = {"surprise (bits)": reading.surprise}
    for number, layer in enumerate(reading.trace.layers):
        rows[f"importance, layer {layer} (0 to 1)"] = reading.trace.importance[:, number].numpy()
    rows |= {f"energy, {name} (‖S‖²)": row for name, row in list(reading.energies.items())[:2]}
    first = reading.first + len(reading.pieces) - len(words)
    drawn["along-text"] = along_text(
        words, {name: row[-len(words) :].tolist() for name, row in rows.items()}, look, first=first
    )
    memory = next(iter(reading.memory_maps))
    maps = {f"memory, layer {memory}": reading.memory_maps[memory]}
    if reading.window_maps:
        window = min(reading.window_maps, key=lambda layer: abs(layer - memory))
        maps[f"window, layer {window}"] = reading.window_maps[window]
    count = len(reading.memory_maps[memory])
    drawn["attention"] = attention_maps(
        maps, reading.pieces[-count:], look, first=reading.first + len(reading.pieces) - count
    )
    name, curves = next(iter(reading.forgetting.items()))
    drawn["forgetting"] = forgetting_curves(
        {f"{name}: {setting}": (steps.tolist(), left.tolist()) for setting, (steps, left) in curves.items()}, look
    )
    return drawn
