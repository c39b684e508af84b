"""The live view in a terminal: `ssmn watch`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from ssmn.errors import MissingExtraError, SSMNError
from ssmn.live.command import Setup
from ssmn.live.numbers import Picture
from ssmn.live.reading import Piece
from ssmn.live.session import Session
from ssmn.live.updates import Update, trail_point

try:
    from textual.app import App, ComposeResult
    from textual.binding import Binding
    from textual.containers import Container, Horizontal, Vertical
    from textual.strip import Strip
    from textual.widget import Widget
    from textual.widgets import Footer, Static
except ImportError as error:
    raise MissingExtraError("ssmn watch: textual is not installed; type: pip install 'sparse-stream[viz]'") from error

DRAWN = 20.0
"""Drawings a second at most."""
MAPS_EVERY = 2
"""Drawings from one of the map to the next: it costs more than all the rest."""
SHADES = 16
"""Levels of each colour."""
WIDE = 110
"""Columns from which on the map has its numbers and its text beside it, not below."""
SPARKS = 80
"""Columns of a line at most."""
LEAST_ROWS = 8
"""Rows of cells that a map is at least, by repetition."""
KEPT_PIECES = 400
_BARS = " ▁▂▃▄▅▆▇█"
_NEGATIVE = {True: (86, 180, 233), False: (0, 114, 178)}
_POSITIVE = {True: (230, 159, 0), False: (184, 95, 0)}
_PAPER = {True: (22, 27, 34), False: (255, 255, 255)}


def shade(value: float, dark: bool) -> tuple[int, int, int]:
    """The colour of a value in −1 .. 1: blue, paper, orange; the square root lifts what is small.

    Example:
        >>> from ssmn.live.terminal import shade
        >>> shade(0.0, dark=False), shade(-1.0, dark=False), shade(1.0, dark=True)
        ((255, 255, 255), (0, 114, 178), (230, 159, 0))
    """
    end = (_NEGATIVE if value < 0 else _POSITIVE)[dark]
    strength = math.sqrt(min(1.0, abs(value)))
    red, green, blue = (round(p + (e - p) * strength) for p, e in zip(_PAPER[dark], end, strict=True))
    return red, green, blue


def sparkline(values: Sequence[float], width: int) -> str:
    """The latest values as bars of eight heights, from 0 (or the least) up; blanks for NaN.

    Example:
        >>> from ssmn.live.terminal import sparkline
        >>> sparkline([0.0, 1.0, 4.0, 8.0], 4)
        ' ▁▄█'
    """
    shown = list(values)[-width:]
    sound = [value for value in shown if math.isfinite(value)]
    low, high = min([0.0, *sound]), max(sound, default=0.0)
    room = (high - low) or 1.0
    return "".join(_BARS[round(8 * (v - low) / room)] if math.isfinite(v) else " " for v in shown)


class Heat(Widget):
    """A memory's map in half-blocks, two cells in a character; all heads side by side, as large as fits."""

    def __init__(self) -> None:
        super().__init__()
        self._dark = True
        self.levels = np.zeros((0, 0), np.int8)
        """[R, C], what is shown: −`SHADES` .. `SHADES`."""

    def show(self, picture: Picture, dark: bool, width: int, height: int) -> None:
        """Draws a new picture, in at most so many columns and lines of the terminal."""
        levels = fitted(picture, width, 2 * height)
        if dark != self._dark or not np.array_equal(levels, self.levels):
            self.levels, self._dark = levels, dark
            self.styles.width, self.styles.height = levels.shape[1], -(-len(levels) // 2)
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Two rows of cells as one line of characters."""
        upper = self.levels[2 * y].tolist() if 2 * y < len(self.levels) else []
        lower = self.levels[2 * y + 1].tolist() if 2 * y + 1 < len(self.levels) else [0] * len(upper)
        return Strip([Segment("▀", _pair(top, low, self._dark)) for top, low in zip(upper, lower, strict=True)])


def fitted(picture: Picture, width: int, height: int) -> NDArray[np.int8]:
    """The levels [R ≤ height, C ≤ width] of a picture's heads side by side: of each block of cells the strongest.

    Example:
        >>> import torch
        >>> from ssmn.live.numbers import picture
        >>> from ssmn.live.terminal import fitted
        >>> fitted(picture(torch.tensor([[[0.0, 1.0, 0.5], [0.0, -2.0, 0.0]]])), 4, 2).tolist()
        [[0, 8, 4], [0, -16, 0]]
    """
    heads, rows, columns = picture.cells.shape
    room = max(1, (width - (heads - 1)) // heads), max(1, height)
    step = max(1, math.ceil(columns / room[0]), math.ceil(rows / room[1]))
    cells = np.pad(picture.cells, ((0, 0), (0, -rows % step), (0, -columns % step))).astype(np.int16)
    blocks = cells.reshape(heads, -(-rows // step), step, -(-columns // step), step)
    high, low = blocks.max((2, 4)), blocks.min((2, 4))
    strongest = np.where(high >= -low, high, low)
    levels = np.rint(strongest * (SHADES / 127)).astype(np.int8)
    # A recurrence is two rows: as tall as a line of text each, they can be seen.
    levels = np.repeat(levels, max(1, min(height, LEAST_ROWS) // levels.shape[1]), axis=1)
    apart = np.zeros((levels.shape[1], 1), np.int8)
    return np.concatenate([part for head in levels for part in (apart, head)][1:], axis=1)


@cache
def _pair(top: int, low: int, dark: bool) -> Style:
    """The style of a half-block: one level above another."""
    colours = (Color.from_rgb(*shade(level / SHADES, dark)) for level in (top, low))
    return Style(color=next(colours), bgcolor=next(colours))


class View(Vertical):
    """One session: how it stands, its maps, its lines, its settings and what it reads."""

    DEFAULT_CSS = """
    View { width: 1fr; padding: 0 1; }
    View Static { height: auto; }
    View .head { text-style: bold; }
    View .body { height: 1fr; layout: horizontal; margin-top: 1; }
    View .maps { width: auto; height: auto; }
    View .title { width: auto; color: $text-muted; }
    View Heat { width: 1; height: 1; margin-bottom: 1; }
    View .facts { width: 1fr; height: 1fr; padding-left: 2; }
    View .settings { margin-top: 1; }
    View .text { height: 1fr; margin-top: 1; }
    View.narrow .body { layout: vertical; }
    View.narrow .facts { padding-left: 0; }
    """

    def __init__(self, session: Session, setup: Setup, is_chosen: bool) -> None:
        super().__init__()
        self.session, self._setup, self.is_chosen = session, setup, is_chosen
        self.row = 0
        self._seen = self._drawn = 0
        self._looked: tuple[Any, ...] = ()
        self._pieces: deque[Piece] = deque(maxlen=KEPT_PIECES)
        self._trail: deque[list[Any]] = deque(maxlen=400)
        self._parts = {name: Static(classes=name) for name in ("head", "lines", "settings", "text")}
        shown = session.latest.report.layers
        self._titles = [Static(f"layer {layer.layer} · {layer.title}", classes="title") for layer in shown]
        self._heats = [Heat() for _ in shown]

    def compose(self) -> ComposeResult:
        """The parts, from top to bottom."""
        head, *others = self._parts.values()
        yield head
        maps = [part for pair in zip(self._titles, self._heats, strict=True) for part in pair]
        yield Container(Vertical(*maps, classes="maps"), Vertical(*others, classes="facts"), classes="body")

    def draw(self, dark: bool) -> None:
        """Shows what is new."""
        news = self.session.updates_after(self._seen)
        for update in news if news is not None else [self.session.latest]:
            self._seen = update.number
            self._pieces.extend(update.report.pieces)
            if update.report.steps:
                self._trail.append(trail_point(update))
        update = self.session.latest
        looked = update.number, dark, self.is_chosen, self.row, self.size
        if looked == self._looked and self._drawn % MAPS_EVERY == 1:
            return
        self._looked = looked
        is_narrow = self.size.width < WIDE
        self.set_class(is_narrow, "narrow")
        if self._drawn % MAPS_EVERY == 0:
            lines = (self.size.height - 3) // (3 if is_narrow else 1) // len(self._heats) - 2
            width = self.size.width if is_narrow else self.size.width - WIDE // 2
            for heat, layer in zip(self._heats, update.report.layers, strict=True):
                heat.show(layer.picture, dark, width, lines)
        self._drawn += 1
        width = max(8, min(SPARKS, self._parts["lines"].size.width - 30))
        self._parts["head"].update(self._head(update))
        self._parts["lines"].update(self._lines(update, width))
        self._parts["settings"].update(self._settings(update))
        text = self._parts["text"]
        text.update(self._text(max(1, text.size.width * text.size.height), dark))

    def _head(self, update: Update) -> Text:
        unit = "tokens" if self._setup.tokenizer is not None else "rows"
        name = "fork" if self.session.parent is not None else self.session.label
        made = Text(f"{'▶ ' if self.is_chosen else ''}{name}  ", no_wrap=True, overflow="ellipsis")
        made.append(update.status, style="bold" if update.status == "running" else "bold reverse")
        made.append(f"  {update.report.position:,} {unit}  {update.pace:,.0f}/s", style="not bold")
        if update.distance is not None and math.isfinite(update.distance):
            made.append(f"  {100 * update.distance:.1f} % from its parent", style="not bold")
        if update.checkpoints:
            made.append(f"  {update.checkpoints[-1]}", style="not bold")
        if update.message:
            made.append(f"\n{update.message}", style="not bold")
        return made

    def _lines(self, update: Update, width: int) -> Text:
        unit = "bits/byte" if self._setup.tokenizer is not None else "deviations"
        trail = [
            [math.nan if value is None else value for value in (point[1], *_mean(point[3]))] for point in self._trail
        ]
        made = Text(no_wrap=True)
        for number, name in enumerate((f"surprise {unit}", "energy", "change a step", "effective rank", "written")):
            values = [point[number] for point in trail]
            if number > 2 and not any(map(math.isfinite, values)):
                continue  # a memory that is no matrix, or does not choose what it writes
            latest = next((value for value in reversed(values) if math.isfinite(value)), math.nan)
            made.append(f"{name:<19}", style="dim")
            made.append(f"{latest:>8.4g} " if math.isfinite(latest) else f"{'–':>8} ")
            made.append(sparkline(values, width) + "\n", style="cyan")
        made.rstrip()
        return made

    def _settings(self, update: Update) -> Text:
        made = Text(no_wrap=True, overflow="ellipsis")
        for number, (name, value) in enumerate(told(update, self._setup).items()):
            mark = "›" if self.is_chosen and number == self.row else " "
            made.append(f"{mark} {name:<16}{value}\n", style="reverse" if mark == "›" else "")
        made.rstrip()
        return made

    def _text(self, room: int, dark: bool) -> Text:
        if self._setup.tokenizer is None:
            return self._rows()
        made = Text(overflow="fold")
        background, ink = _PAPER[dark], _NEGATIVE[dark]
        left, taken = room - 1, []
        for piece in reversed(self._pieces):
            left -= len(piece.text) + 40 * piece.text.count("\n")
            if left < 0:
                break
            taken.append(piece)
        for piece in reversed(taken):
            level = min(5, int(piece.importance * 6)) / 9
            red, green, blue = (round(p + (i - p) * level) for p, i in zip(background, ink, strict=True))
            made.append(piece.text, Style(bgcolor=Color.from_rgb(red, green, blue)) if level else "")
        return made

    def _rows(self) -> Text:
        made = Text(no_wrap=True)
        width = max(8, min(SPARKS, self._parts["text"].size.width - 45))
        names = self.session.latest.columns[:4]
        room = min(20, max(map(len, names), default=0))
        for column, name in enumerate(names):
            values = [piece.values[column] for piece in self._pieces]
            if values:
                latest, expected = values[-1], self._pieces[-1].expected[column]
                made.append(f"{name[:room]:<{room}}", style="dim")
                made.append(f"{latest:>10.4g} expected {expected:>10.4g} {sparkline(values, width)}\n")
        return made


def settings_of(setup: Setup) -> list[str]:
    """What the arrow keys change, from top to bottom: what has an effect on this model, and the speed."""
    return [name for name in setup.about["settings"] if name != "frozen"] + ["speed"]


def told(update: Update, setup: Setup) -> dict[str, str]:
    """The settings in words, by their names, in the order of `settings_of`."""
    plasticity, about = update.plasticity, setup.about
    speed = {"speed": "as fast as it goes" if update.speed is None else f"{update.speed:,.0f} a second"}
    if about["eta"] is None:
        return speed
    threshold = about["threshold"] if plasticity.write_threshold is None else plasticity.write_threshold
    rates = [1 - (1 - rate) ** plasticity.decay_scale for rate in about["decay"]]
    spread = f"{min(rates):.2g}" + (f" … {max(rates):.2g}" if max(rates) > min(rates) else "")
    return {
        "η writing": f"×{plasticity.eta_scale:.3g}  η {min(1.0, plasticity.eta_scale * about['eta']):.3g}",
        "λ forgetting": f"×{plasticity.decay_scale:.3g}  λ {spread}",
        "write threshold": f"{threshold:.2f}" if threshold > 0 else "off",
        **speed,
    }


def turned(name: str, update: Update, setup: Setup, by: int) -> dict[str, Any]:
    """One setting a step up (by = 1) or down (−1): factors by a quarter of a power of ten, thresholds by 0.05."""
    if name == "speed":
        place = 4.0 if update.speed is None else math.log10(update.speed)
        place = min(4.0, max(0.0, round(place * 4 + by) / 4))
        return {"speed": None if place >= 4.0 else round(10**place)}
    if name == "write_threshold":
        value = update.plasticity.write_threshold
        value = setup.about["threshold"] if value is None else value
        return {name: min(1.0, max(0.0, round(value + 0.05 * by, 2)))}
    place = math.log10(max(1e-4, getattr(update.plasticity, name)))
    return {name: 10.0 ** min(4.0, max(-4.0, round(place * 4 + by) / 4))}


class WatchApp(App[None]):
    """The application: one session, or two after a fork.

    Args:
        setup: Model and source.
    """

    TITLE = "ssmn watch"
    ENABLE_COMMAND_PALETTE = False
    CSS = "#views { height: 1fr; } #notice { height: auto; color: $warning; padding: 0 1; }"
    BINDINGS: ClassVar[list[Any]] = [
        Binding("p", "pause", "Pause"),
        Binding("c", "checkpoint", "Checkpoint"),
        Binding("r", "rollback", "Roll back"),
        Binding("f", "fork", "Fork"),
        Binding("tab", "other", "Other", priority=True),
        Binding("up", "choose(-1)", "↑↓ choose", show=True),
        Binding("down", "choose(1)", "Down", show=False),
        Binding("left", "turn(-1)", "←→ change", show=True),
        Binding("right", "turn(1)", "More", show=False),
        Binding("a", "trained", "As trained"),
        Binding("d", "theme", "Light/dark"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._setup = setup
        self._views: list[View] = []
        self._chosen = 0
        self.failure = ""
        """Why the source broke off, if it did."""

    @property
    def sessions(self) -> list[Session]:
        """The sessions shown, the first one first."""
        return [view.session for view in self._views]

    def compose(self) -> ComposeResult:
        """One view at the start."""
        self._views = [View(self._setup.session(), self._setup, True)]
        yield Horizontal(*self._views, id="views")
        yield Static(id="notice")
        yield Footer()

    def on_mount(self) -> None:
        """Starts reading and drawing."""
        self._views[0].session.start()
        self.set_interval(1 / DRAWN, self._draw)

    def close(self) -> None:
        """Ends the sessions."""
        for session in self.sessions:
            self.failure = self.failure or session.latest.message
            session.close()

    def action_pause(self) -> None:
        """Pauses the chosen session, or lets it go on."""
        session = self._view.session
        is_halted = session.latest.status in ("paused", "failed")
        self._attempt(session.resume if is_halted else session.pause)

    def action_checkpoint(self) -> None:
        """Remembers the state."""
        self._attempt(self._view.session.checkpoint)

    def action_rollback(self) -> None:
        """Goes back to the latest checkpoint."""
        self._attempt(self._view.session.rollback)

    def action_trained(self) -> None:
        """All settings of the memory as trained."""
        self._attempt(self._view.session.reset_plasticity)

    async def action_fork(self) -> None:
        """Opens a second session from the state of the first, or closes it."""
        if len(self._views) == 2:
            fork = self._views.pop()
            self._chosen = 0
            await fork.remove()
            fork.session.close()
        else:
            made = self._views[0].session.fork()
            self._views.append(View(made, self._setup, False))
            await self.query_one("#views").mount(self._views[1])
            made.start()
            self._chosen = 1
        self._mark()

    def action_other(self) -> None:
        """Chooses the other session."""
        self._chosen = (self._chosen + 1) % len(self._views)
        self._mark()

    def action_choose(self, by: int) -> None:
        """Chooses the setting above or below."""
        self._view.row = (self._view.row + by) % len(settings_of(self._setup))

    def action_turn(self, by: int) -> None:
        """Changes the chosen setting."""
        view = self._view
        change = turned(settings_of(self._setup)[view.row], view.session.latest, self._setup, by)
        if "speed" in change:
            self._attempt(lambda: view.session.set_speed(change["speed"]))
        else:
            self._attempt(lambda: view.session.set_plasticity(**change))

    def action_theme(self) -> None:
        """Light or dark."""
        self.theme = "textual-light" if self._is_dark else "textual-dark"

    @property
    def _is_dark(self) -> bool:
        return self.current_theme.dark

    @property
    def _view(self) -> View:
        return self._views[self._chosen]

    def _mark(self) -> None:
        for number, view in enumerate(self._views):
            view.is_chosen = number == self._chosen

    def _attempt(self, action: Any) -> None:
        notice = self.query_one("#notice", Static)
        try:
            action()
            notice.update("")
        except SSMNError as error:
            notice.update(str(error))

    def _draw(self) -> None:
        for view in self._views:
            if view.children:  # not yet at the start, and no more at the end
                view.draw(self._is_dark)


def _mean(layers: Sequence[Sequence[float]]) -> list[float]:
    """Energy summed, the rest averaged over layers."""
    energy = sum(layer[0] for layer in layers)
    return [energy, *(sum(layer[n] for layer in layers) / len(layers) for n in (1, 2, 3))]
