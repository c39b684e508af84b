"""`ssmn inspect`: what a memory holds, and what a model does while it reads a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmn.cli import options
from ssmn.errors import FileError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    from ssmn.config import Plasticity
    from ssmn.models import SSMN, TextSSMN
    from ssmn.plots.report import Holdings, Parting, Reading
    from ssmn.probes import Writes
    from ssmn.state import StreamState
    from ssmn.training import Tokenizer

_SHADES = (None, "on grey23", "on dark_blue", "on dark_cyan", "black on dark_orange", "black on bright_yellow")
"""From not written (and what is written with a strength near 0) to a strength near 1."""


def command(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Folder of a model; the shipped text model if absent.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="The text to read.")] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", "-s", metavar="FILE", help="A saved state: where to start, or all there is."),
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another text, which a fork of the stream reads instead.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write everything as one page that needs no network.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the drawings as PNG files.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw the PNG files on a dark ground.")] = False,
    writes: Annotated[bool, typer.Option("--writes", help="Show which tokens are written into the memory.")] = False,
    write_threshold: Annotated[
        float | None, typer.Option(metavar="[0, 1]", help="Skip writes of less importance; the model's own if absent.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only this many tokens.")] = None,
    shown: Annotated[int, typer.Option(min=1, help="Tokens of the text in the report, its last ones.")] = 1200,
    top: Annotated[int, typer.Option(min=0, help="Rows of the table of tokens.")] = 20,
    threads: options.Threads = None,
) -> None:
    """Show what a model's memory holds, and what it does while it reads a text.

    Of a saved state: how much each memory holds, how full it is, how much of each window is in use. Of a text: also
    how firmly its tokens are written, how surprising they are, and how long what is written lasts. The report has the
    text itself: point at a token, and the earlier ones that its read of the memory drew on light up.

    With --writes the text comes out as it is read, in constant memory, each token on a background by the strength it
    is written with, from none (skipped) to bright (where there are no colours, ⟨ ⟩ stand around what is written with
    0.5 and more). Then: the share of written tokens of each layer, and the tokens of most importance.

    \b
    Example:
        ssmn inspect runs/book --text notes.txt --report notes.html
        ssmn inspect runs/book --state monday.safetensors --report monday.html
        ssmn inspect runs/book --text notes.txt --writes --write-threshold 0.5 --limit 2000
    """
    if text is None and state is None:
        raise typer.BadParameter("say what to look at: --text FILE, --text FILE --writes, or --state FILE.")
    if text is None and (writes or beside or write_threshold is not None or limit is not None):
        raise typer.BadParameter("--writes, --beside, --write-threshold and --limit are about a text: add --text FILE.")
    options.use_threads(threads)
    options.check_place(report)

    from rich.console import Console

    from ssmn.config import Plasticity

    console = Console(highlight=False)
    settings = None if write_threshold is None else Plasticity(write_threshold=write_threshold)
    if text is not None and writes:
        _show_writes(console, model, text, state, settings, limit, top)
        if report is None and pictures is None and beside is None:
            return
    _inspect(console, model, text, state, beside, settings, limit, shown, top, report, pictures, dark)


def _show_writes(
    console: Console,
    model: Path | None,
    text: Path,
    state: Path | None,
    settings: Plasticity | None,
    limit: int | None,
    top: int,
) -> None:
    """The text, marked by what is written, as it is read."""
    import torch

    from ssmn.probes import memories, read_writes
    from ssmn.stream import Stream

    lm, tokenizer = options.load_text(model)
    stream = Stream(lm, None if state is None else _load_state(state, lm))
    tally = _Tally(tokenizer.vocab_size, len(memories(lm)), memories(lm)[next(iter(memories(lm)))].heads)
    painter, left = _Painter(tokenizer, coloured=console.color_system is not None), limit
    for piece in _tokens(tokenizer, text):
        tokens = torch.from_numpy(piece[:left].astype("int64"))
        seen = read_writes(stream, tokens.unsqueeze(0), plasticity=settings)
        tally.add(tokens.numpy(), seen)
        console.print(painter.paint(tokens.tolist(), seen.strength.tolist()), end="", soft_wrap=True)
        left = None if left is None else left - len(tokens)
        if left == 0:
            break
    console.print(painter.finish())
    _print_tables(console, tally, tokenizer, list(memories(lm)), top)


def _inspect(
    console: Console,
    model: Path | None,
    text: Path | None,
    state: Path | None,
    beside: Path | None,
    settings: Plasticity | None,
    limit: int | None,
    shown: int,
    top: int,
    report: Path | None,
    pictures: Path | None,
    dark: bool,
) -> None:
    """The summary, and what is asked for in files."""
    import numpy as np

    from ssmn.files import atomic_write
    from ssmn.plots import Look, png
    from ssmn.plots import report as pages

    parting = None
    if text is None:
        assert state is not None
        lm = options.load(model)
        reading, held = None, pages.holdings(_load_state(state, lm))
        title = f"What {state.name} holds"
    else:
        lm, tokenizer = options.load_text(model)
        start = None if state is None else _load_state(state, lm)
        pieces = _tokens(tokenizer, text)
        reading = pages.read(lm, tokenizer, pieces, state=start, limit=limit, shown=shown, plasticity=settings)
        held, title = reading.holdings, f"What the memory did with {text.name}"
        if beside is not None:
            texts = [np.concatenate([np.empty(0, np.int64), *_tokens(tokenizer, path)]) for path in (text, beside)]
            parting = pages.part(lm, *(tokens[:limit] for tokens in texts), state=start, plasticity=settings)
    _print_summary(console, held, reading, parting, top)
    if report is not None:
        command = ["ssmn", "inspect", *([str(model)] if model else []), *([f"--state {state}"] if state else [])]
        command += [f"--text {text}"] if text else []
        command += [f"--beside {beside}"] if beside else []
        about = pages.About(title, _described(lm), " ".join([*command, f"--report {report}"]))
        pages.write_report(report, about, held, reading, parting)
        console.print(f"{report}: {report.stat().st_size / 1e6:.1f} MB, opens from disk in any browser", soft_wrap=True)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, figure in pages.pictures(held, reading, Look(dark=dark), parting=parting).items():
            atomic_write(pictures / f"{name}.png", png(figure))
            console.print(pictures / f"{name}.png", soft_wrap=True)


def _tokens(tokenizer: Tokenizer, path: Path) -> Iterator[np.ndarray]:
    from ssmn.streaming import token_pieces

    with path.open("rb") as file:
        try:
            yield from token_pieces(tokenizer, file)
        except FileError as error:
            raise FileError(f"{path}: {error}") from error


def _load_state(path: Path, model: TextSSMN | SSMN) -> StreamState:
    from ssmn.state import StreamState

    state = StreamState.load(path, model)
    if state.batch_size != 1:
        raise FileError(f"{path}: holds {state.batch_size} streams; wanted one (StreamState.select takes one out).")
    return state


def _described(model: TextSSMN | SSMN) -> str:
    config = model.config
    layers = ", ".join(config.layer_types or ())
    return f"{type(model).__name__}, {model.num_parameters():,} parameters, width {config.hidden_dim}, layers {layers}"


def _print_summary(
    console: Console, held: Holdings, reading: Reading | None, parting: Parting | None, top: int
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    facts = Table(show_header=False, box=None)
    facts.add_row("position", f"{held.position:,}")
    facts.add_row("state", f"{held.nbytes:,} bytes")
    if reading is not None:
        facts.add_row("read", f"{reading.tokens:,} tokens from position {reading.start:,}")
        facts.add_row("surprise", f"{reading.bits_per_byte:.3f} bits per byte")
        for layer, written, asked in zip(reading.trace.layers, reading.written, reading.importance, strict=True):
            facts.add_row(f"layer {layer}", f"{written:.1%} written, mean importance {asked:.3f}")
    if parting is not None:
        for name, row in parting.distances.items():
            facts.add_row(name, f"{row[-1]:.3f} from the fork's after {parting.positions[-1] - parting.fork:,} tokens")
    console.print(facts)
    read = reading is not None
    title = "Memories (half-life in steps: by decay, and with what is overwritten)" if read else "Memories"
    memory = Table(box=SIMPLE_HEAD, title=title, title_justify="left", collapse_padding=True)
    names = ["layer", "head", "energy", "rank", "full"]
    names += ["half-life", "in all", "written", "importance"] if read else []
    for name in names:
        memory.add_column(name, justify="right")
    for head in held.heads:
        row = [f"{head.layer}", f"{head.head}", f"{head.energy:,.0f}" if head.energy >= 1000 else f"{head.energy:.3g}"]
        row += [f"{head.effective_rank:.1f}/{len(head.memory)}", f"{head.saturation:.0%}"]
        if read:
            row += [f"{head.half_life:,.0f}", f"{head.half_life_probed:,.0f}"]
            row += [f"{head.write_rate:.1%}", f"{head.importance:.3f}"]
        memory.add_row(*row)
    if held.heads:
        console.print(memory)
    others = Table(box=SIMPLE_HEAD, title="Other memories", title_justify="left")
    for name in ("layer", "head", "what", "size", "energy", "rank"):
        others.add_column(name, justify="left" if name == "what" else "right")
    for part in held.parts:
        rank = "–" if part.effective_rank != part.effective_rank else f"{part.effective_rank:.1f}"
        size = f"{part.values.shape[0]:,} × {part.values.shape[1]:,}"
        others.add_row(
            str(part.layer), "" if part.head is None else str(part.head), part.title, size, f"{part.energy:.3g}", rank
        )
    if held.parts:
        console.print(others)
    windows = Table(box=SIMPLE_HEAD, title="Windows", title_justify="left")
    for name in ("layer", "tokens it sees", "filled"):
        windows.add_column(name, justify="right")
    for layer, (fill, size) in held.windows.items():
        windows.add_row(str(layer), f"{size:,}", f"{fill:.0%}")
    if held.windows:
        console.print(windows)
    if reading is not None and top:
        tokens = Table(box=SIMPLE_HEAD, title="Tokens of most importance", title_justify="left")
        for name in ("token", "seen", "mean importance"):
            tokens.add_column(name, justify="left" if name == "token" else "right")
        for token in reading.important[:top]:
            tokens.add_row(Text(token.text), f"{token.count:,}", f"{token.importance:.3f}")
        console.print(tokens)


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

    from ssmn.plots.report import quoted

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
        shown = Text(quoted(tokenizer, int(token)))
        share, mean = tally.strength[token] / count, tally.importance[token] / count
        tokens.add_row(shown, f"{count:,.0f}", f"{share:.0%}", f"{mean:.3f}")
    if tokens.row_count:
        console.print(tokens)
