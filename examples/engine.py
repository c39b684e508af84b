"""Run a saved model without torch: one C call a step, many streams at their own pace, forks and state files.

Run it:

    python examples/engine.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

import ssmn


def save_a_model(folder: Path) -> None:
    """Needs torch, as training does; everything after it does not."""
    model = ssmn.SSMN(ssmn.SSMNConfig.preset("tiny", input_dim=8, output_dim=8))
    model.save_pretrained(folder)


def main(steps: int = 2000) -> None:
    """Steps, batches, forks and files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_a_model(folder / "model")
        sensors = np.random.default_rng(0).standard_normal((steps, 8), np.float32)

        engine = ssmn.Engine.load(folder / "model")
        times = np.empty(steps)
        for t, x_t in enumerate(sensors):
            start = time.perf_counter()
            y_t = engine.step(x_t)  # overwritten by the next step
            times[t] = time.perf_counter() - start
        last = y_t.copy()
        print(f"position {engine.position(0)}, {np.median(times) * 1e6:.1f} microseconds a step")

        whole = ssmn.Engine.load(folder / "model")
        print("a sequence at once is equal to the bit:", np.array_equal(whole.prefill(sensors), last))

        # A fork tries something out; its parent does not notice.
        trial = engine.fork(0)
        engine.set_plasticity(ssmn.Plasticity(frozen=True), trial)
        engine.run(sensors[:50], streams=[trial])
        print("parent", engine.position(0), "trial", engine.position(trial))

        # The file is the one that `StreamState.save` writes with the model.
        engine.save_state(0, folder / "monday.safetensors")
        small = ssmn.Engine.load(folder / "model", dtype="int8", streams=3)
        small.load_state(2, folder / "monday.safetensors")
        small.step(sensors[:2], streams=[0, 2])
        print("positions", [small.position(i) for i in range(small.streams)])
        print(f"bytes of weights: float32 {engine.weight_nbytes}, int8 {small.weight_nbytes}")


if __name__ == "__main__":
    main()
