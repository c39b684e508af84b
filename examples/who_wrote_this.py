"""Which earlier words does the memory draw on at a question? The read is taken apart, exactly, write by write."""

import torch

import ssmn
from ssmn.probes import Tracer, attribution_matrix

FACTS = "anna keeps the amber stone , boris keeps the green lamp , clara keeps the paper boat ,"
NEWS = "boris sold it and bought a ladder , boris bicycle ,"
BETWEEN = 150


def main(between: int = BETWEEN) -> None:
    torch.manual_seed(0)
    filler = [f"word{number}" for number in torch.randint(between, (between,)).tolist()]
    words = ["boris", "lamp", *FACTS.split(), *filler, *NEWS.split(), "boris"]
    table = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokens = torch.tensor([[table[word] for word in words]])

    # An untrained model: with its initial weights the memory already asks what once followed the present word.
    config = ssmn.TextSSMNConfig(
        vocab_size=len(table), hidden_dim=256, num_layers=2, num_heads=4, window_size=8,
        layer_types=("plastic", "static"), decay_lambda=1e-6, plasticity_eta=1.0,
    )  # fmt: skip
    model = ssmn.TextSSMN(config).eval()
    torch.nn.init.zeros_(model.blocks[0].mixer.importance.present.weight)  # and writes every word in full

    tracer = Tracer(model, top=3)
    trace = tracer.push(tokens)
    print(f'after {len(words):,} words, at the last "{words[-1]}", the read is drawn from')
    for position, weight in zip(trace.positions[-1, 0].tolist(), trace.weights[-1, 0].tolist(), strict=True):
        print(f'  word {position:4d}, "{words[position]}" after "{words[position - 1]}": {weight:+.2f}')

    found = attribution_matrix(model, tokens)
    summed = found.weights @ found.values + found.carried
    print(f"sum of all contributions - read: {(summed - found.read).abs().max():.0e}")

    # A fact that was replaced: as stored it is still there, and so is what took it back.
    old, new = 1, len(words) - 3
    stored, left = found.reads[0].stored[0, -1], found.weights[0, -1]
    print(f'"{words[old]}": written {stored[old]:.2f}, left {left[old]:.2f}')
    print(f'"{words[new]}": written {stored[new]:.2f}, left {left[new]:.2f}')


if __name__ == "__main__":
    main()
