"""A Neural Turing Machine learns to copy, then copies longer sequences in a memory with more rows.

It is trained on 1 to 6 vectors of 8 bits in a memory of 12 rows. What it learned is a procedure: write the vectors
into one row after the other, go back to the first, read them in order. So it also works for sequences that it never
saw, once there is room for them; no weight depends on the number of rows.
"""

import dataclasses

import torch

from ssmn.relatives import NTM
from ssmn.training.episodes import CopyVectors, bits_per_episode


def main(steps: int = 400) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = CopyVectors(longest=6)
    machine = NTM(task.input_dim, 100, task.output_dim, memory_slots=12, controller="feedforward")
    optimiser = torch.optim.Adam(machine.parameters(), 4e-3)
    for step in range(steps):
        batch = task.batch(step, batch_size=16)
        cost, _ = bits_per_episode(machine(batch.inputs)[0], batch)
        assert batch.mask is not None
        optimiser.zero_grad()
        (cost.sum() / batch.mask.sum() / task.width).backward()
        torch.nn.utils.clip_grad_norm_(machine.parameters(), 1.0)
        optimiser.step()

    print("wrong bits per episode")
    for length, rows in ((6, 12), (12, 12), (12, 24), (20, 40)):
        batch = dataclasses.replace(task, shortest=length, longest=length).batch(0, batch_size=64, split="test")
        with torch.no_grad():
            _, wrong = bits_per_episode(machine.with_memory_slots(rows)(batch.inputs)[0], batch)
        print(f"{length} vectors, {rows} rows  {wrong.double().mean():.2f} of {task.width * length}")

    batch = dataclasses.replace(task, shortest=6, longest=6).batch(0, batch_size=1, split="test")
    places, state = [], None
    with torch.no_grad():
        for x in batch.inputs.unbind(1):
            _, state = machine.step(x, state)
            places.append(state.weighting[0].argmax(-1).tolist())  # the read head, then the write head
    print("rows written while listening:", [write for _, write in places[:6]])
    print("rows read while answering:   ", [read for read, _ in places[7:]])


if __name__ == "__main__":
    main()
