"""Truncated back-propagation in your own loop: eight endless streams, cut into pieces, with the state carried across.

The text is the source of Python's argparse, byte by byte. The state goes on from piece to piece, and
`detach` cuts the gradient's history, so time and memory of a step do not depend on how much came before.
"""

import argparse
import inspect
import math

import torch
from torch.nn import functional

import ssmn

STREAMS, PIECE = 8, 64


def bits_per_byte(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


def main(steps: int = 200) -> None:
    torch.manual_seed(0)
    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    held_out, text = text[-4096:], text[:-4096]
    lm = ssmn.TextSSMN(ssmn.TextSSMNConfig.preset("tiny", vocab_size=256, window_size=16))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3, betas=(0.9, 0.98))

    streams = text[: len(text) // STREAMS * STREAMS].view(STREAMS, -1)
    state, start = lm.init_state(STREAMS), 0
    for step in range(steps):
        if start + PIECE >= streams.shape[1]:
            state, start = lm.init_state(STREAMS), 0  # the texts begin again, and so do the streams
        inputs = streams[:, start : start + PIECE]
        targets = streams[:, start + 1 : start + PIECE + 1]
        logits, state = lm(inputs, state.detach())
        loss = bits_per_byte(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        start += PIECE
        if step % 25 == 0:
            print(f"step {step:4d}   {loss.item():.3f} bits per byte")

    # Passages that were not trained on, each read twice in a row: the second reading finds the first in the memory.
    passages = held_out.view(-1, 128)
    print("bits per byte   first reading   second reading")
    with torch.no_grad():
        for name, plasticity in (("memory on", None), ("frozen", ssmn.Plasticity(frozen=True))):
            first, state = lm(passages, plasticity=plasticity)
            second, _ = lm(passages, state, plasticity=plasticity)
            figures = (bits_per_byte(logits[:, :-1], passages[:, 1:]).item() for logits in (first, second))
            print(f"{name:13s}" + "".join(f"{figure:16.3f}" for figure in figures))


if __name__ == "__main__":
    main()
