"""`ssmn inspect`: what a model does while it reads a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmn.cli import options

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    from ssmn.probes import Writes
    from ssmn.training import Tokenizer

_SHADES = (None, "on grey23", "on dark_blue", "on dark_cyan", "black on dark_orange", "black on bright_yellow")
"""From not written (and what is written with a strength near 0) to a strength near 1."""


def command(
    model: Annotated[Path | None, typer.Argument(help="Folder of a text model; the shipped one if absent.")] = None,
    text: Annotated[Path | None, typer.Option(help="The text to read.")] = None,
    writes: Annotated[bool, typer.Option("--writes", help="Show which tokens are written into the memory.")] = False,
    write_threshold: Annotated[
        float | None, typer.Option(metavar="[0, 1]", help="Skip writes of less importance; the model's own if absent.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only this many tokens.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows of the table of tokens.")] = 20,
    threads: options.Threads = None,
) -> None:
    """Show what a model writes into its memory while it reads a text, in constant memory.

    The text comes out as it is read, each token on a background by the strength it is written with,
    from none (skipped) to bright (where there are no colours, ⟨ ⟩ stand around what is written with
    0.5 and more). Then: the share of written tokens of each layer, and the tokens of most importance.

    \b
    Example:
        ssmn inspect runs/book --text notes.txt --writes
        ssmn inspect runs/book --text notes.txt --writes --write-threshold 0.5 --limit 2000
    """
    if not writes or text is None:
        raise typer.BadParameter("say what to look at: --text FILE --writes.")
    options.use_threads(threads)
    lm, tokenizer = options.load_text(model)

    import torch
    from rich.console import Console

    from ssmn.config import Plasticity
    from ssmn.probes import memories, read_writes
    from ssmn.stream import Stream
    from ssmn.streaming import token_pieces

    console, stream = Console(highlight=False), Stream(lm)
    settings = None if write_threshold is None else Plasticity(write_threshold=write_threshold)
    tally = _Tally(tokenizer.vocab_size, len(memories(lm)), memories(lm)[next(iter(memories(lm)))].heads)
    painter, left = _Painter(tokenizer, coloured=console.color_system is not None), limit
    with text.open("rb") as file:
        for piece in token_pieces(tokenizer, file):
            tokens = torch.from_numpy(piece[:left].astype("int64"))
            seen = read_writes(stream, tokens.unsqueeze(0), plasticity=settings)
            tally.add(tokens.numpy(), seen)
            console.print(painter.paint(tokens.tolist(), seen.strength.tolist()), end="", soft_wrap=True)
            left = None if left is None else left - len(tokens)
            if left == 0:
                break
    console.print(painter.finish())
    _print_tables(console, tally, tokenizer, list(memories(lm)), top)


class _Painter:
    """Turns tokens into marked text; the bytes of a character that is not whole wait for the rest."""

    def __init__(self, tokenizer: Tokenizer, *, coloured: bool) -> None:
        self._decoder, self._coloured = tokenizer.stream_decoder(), coloured

    def paint(self, tokens: list[int], strengths: list[float]) -> Text:
        from rich.text import Text

        painted = Text()
        for token, strength in zip(tokens, strengths, strict=True):
            characters = self._decoder.push(token)
            if self._coloured:
                shade = _SHADES[min(len(_SHADES) - 1, int(strength * len(_SHADES)))]
                painted.append(characters, style=shade)
            else:
                painted.append(f"⟨{characters}⟩" if strength >= 0.5 and characters.strip() else characters)
        return painted

    def finish(self) -> str:
        return self._decoder.finish()


class _Tally:
    """Sums over a stream: what the tables need, whatever its length."""

    def __init__(self, vocab_size: int, layers: int, heads: int) -> None:
        import numpy as np

        self.steps = 0
        self.count, self.strength, self.importance = np.zeros(vocab_size), np.zeros(vocab_size), np.zeros(vocab_size)
        self.written, self.asked = np.zeros((layers, heads)), np.zeros((layers, heads))

    def add(self, tokens: np.ndarray, writes: Writes) -> None:
        import numpy as np

        self.steps += len(tokens)
        np.add.at(self.count, tokens, 1)
        np.add.at(self.strength, tokens, writes.written.mean((1, 2)))
        np.add.at(self.importance, tokens, writes.importance.mean((1, 2)))
        self.written += writes.written.sum(0)
        self.asked += writes.importance.sum(0)

    def most_important(self, top: int) -> np.ndarray:
        """Tokens by mean importance; those seen less than three times only if there are too few others."""
        import numpy as np

        mean = self.importance / np.maximum(self.count, 1)
        order = np.lexsort((-mean, self.count < 3))
        return order[: min(top, int((self.count > 0).sum()))]


def _print_tables(console: Console, tally: _Tally, tokenizer: Tokenizer, layers: list[int], top: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    steps = max(1, tally.steps)
    rates = Table(box=SIMPLE_HEAD, title=f"{tally.steps:,} tokens", title_justify="left")
    for name in ("layer", "head", "written", "mean importance"):
        rates.add_column(name, justify="right")
    for number, layer in enumerate(layers):
        for head, (written, asked) in enumerate(zip(tally.written[number], tally.asked[number], strict=True)):
            rates.add_row(str(layer), str(head), f"{written / steps:.1%}", f"{asked / steps:.3f}")
    console.print(rates)
    tokens = Table(box=SIMPLE_HEAD, title="Tokens of most importance", title_justify="left")
    for name in ("token", "seen", "written", "mean importance"):
        tokens.add_column(name, justify="left" if name == "token" else "right")
    for token in tally.most_important(top):
        count = tally.count[token]
        shown = Text(_shown(tokenizer, int(token)))
        share, mean = tally.strength[token] / count, tally.importance[token] / count
        tokens.add_row(shown, f"{count:,.0f}", f"{share:.0%}", f"{mean:.3f}")
    if tokens.row_count:
        console.print(tokens)


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token in quotes: as text, or as bytes if it is only a part of a character."""
    raw = tokenizer.decode_bytes([token])
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)
