"""The live view in the terminal, driven by textual's pilot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("textual", reason='the extra "viz" is not installed')

from textual.pilot import Pilot
from textual.widgets import Static

from ssmn.config import TextSSMNConfig
from ssmn.live.command import Setup
from ssmn.live.numbers import picture
from ssmn.live.terminal import SHADES, Heat, View, WatchApp, fitted, shade, sparkline, turned
from ssmn.models import TextSSMN
from ssmn.training import Tokenizer
from tiny import row_model, text_model

TOKENIZER = Tokenizer.for_bytes()
STORY = "the story that was read goes on and on.\n" * 200


def watched(setup: Setup, script: Callable[[WatchApp, Pilot[None]], Awaitable[None]]) -> None:
    """Runs the application without a terminal while the script presses keys."""

    async def run() -> None:
        app = WatchApp(setup)
        try:
            async with app.run_test(size=(150, 50)) as pilot:
                await script(app, pilot)
        finally:
            app.close()

    asyncio.run(run())


async def until(pilot: Pilot[None], wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not wanted():
        assert time.monotonic() < deadline
        await pilot.pause(0.02)


def text_setup(tmp_path: Path, speed: float = 0.0) -> Setup:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return Setup.of(text_model().eval(), TOKENIZER, str(path), speed=speed)


def said(view: View, part: str) -> str:
    return str(view._parts[part].render())


def test_a_text_is_watched(tmp_path: Path) -> None:
    async def script(app: WatchApp, pilot: Pilot[None]) -> None:
        (session,) = app.sessions
        await until(pilot, lambda: session.latest.status == "ended")
        (view,) = app.query(View)
        await until(pilot, lambda: "ended" in said(view, "head"))
        assert f"{len(STORY):,} tokens" in said(view, "head") and "story.txt" in said(view, "head")
        assert "goes on and on" in said(view, "text")
        lines = said(view, "lines").splitlines()
        assert [line.split()[0] for line in lines] == ["surprise", "energy", "change", "effective", "written"]
        assert all("█" in line for line in lines)
        heat = view.query_one(Heat)
        assert heat.levels.shape == (16, 16) and np.abs(heat.levels).max() == SHADES
        strip = heat.render_line(3)
        assert strip.text == "▀" * 16
        style = strip._segments[5].style
        assert style is not None and style.color is not None and style.bgcolor is not None
        assert tuple(style.color.triplet or ()) == shade(heat.levels[6, 5] / SHADES, dark=True)
        assert tuple(style.bgcolor.triplet or ()) == shade(heat.levels[7, 5] / SHADES, dark=True)
        await pilot.press("d")
        await until(pilot, lambda: heat.render_line(3)._segments[5].style != style)
        await pilot.press("q")

    watched(text_setup(tmp_path), script)


def test_keys_do_what_they_say(tmp_path: Path) -> None:
    async def script(app: WatchApp, pilot: Pilot[None]) -> None:
        (session,) = app.sessions
        await until(pilot, lambda: session.latest.report.position > 40)
        await pilot.press("p")
        assert session.latest.status == "paused"
        at = session.latest.report.position
        await pilot.press("r")
        await until(pilot, lambda: "there is no checkpoint" in str(app.query_one("#notice", Static).render()))
        await pilot.press("c")
        assert session.latest.checkpoints == ("checkpoint 1",)
        kept = session._reading.state
        await pilot.press("left", "left", "down", "right", "down", "right", "down", "left")
        settings = session.latest.plasticity
        assert settings.eta_scale == pytest.approx(10**-0.5)
        assert settings.decay_scale == pytest.approx(10**0.25)
        assert settings.write_threshold == 0.05
        assert session.latest.speed == round(10**2.25)
        await until(pilot, lambda: "› speed" in said(app.query_one(View), "settings"))
        await pilot.press("p")
        await until(pilot, lambda: session.latest.report.position > at + 20)
        await pilot.press("p", "r")
        assert session.latest.report.position == at
        assert session._reading.state.diff(kept).identical
        await pilot.press("a")
        assert session.latest.plasticity.eta_scale == 1.0

    watched(text_setup(tmp_path, speed=300.0), script)


def test_a_fork_goes_its_own_way(tmp_path: Path) -> None:
    async def script(app: WatchApp, pilot: Pilot[None]) -> None:
        (first,) = app.sessions
        await until(pilot, lambda: first.latest.report.position > 40)
        await pilot.press("p", "f")
        fork = app.sessions[1]
        assert fork.parent is first
        await pilot.press("left", "left", "left", "left", "p")
        await until(pilot, lambda: fork.latest.report.position > first.latest.report.position + 60)
        await until(pilot, lambda: len(app.query(View)) == 2 and "from its parent" in said(app.query(View)[1], "head"))
        assert (fork.latest.distance or 0) > 0.01
        assert first.latest.plasticity.eta_scale == 1.0 and fork.latest.plasticity.eta_scale == pytest.approx(0.1)
        await pilot.press("tab", "c")
        assert first.latest.checkpoints and not fork.latest.checkpoints
        await pilot.press("f")
        await until(pilot, lambda: len(app.query(View)) == 1)
        assert fork.closed and app.sessions == [first]

    watched(text_setup(tmp_path, speed=400.0), script)


def test_rows_are_watched(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("temperature,humidity\n" + "\n".join(f"{n % 7},{n % 5}" for n in range(90)))

    async def script(app: WatchApp, pilot: Pilot[None]) -> None:
        (session,) = app.sessions
        await until(pilot, lambda: session.latest.status == "ended")
        view = app.query_one(View)
        await until(pilot, lambda: "90 rows" in said(view, "head") and "humidity" in said(view, "text"))
        assert "90 rows" in said(view, "head") and "expected" in said(view, "text")

    watched(Setup.of(row_model().eval(), None, str(path), speed=0.0), script)


@pytest.mark.parametrize(("kind", "shape", "lines"), [("lru", (8, 8), 3), ("hopfield", (9, 17), 4), ("ntm", (9, 8), 4)])
def test_members_of_the_family_are_watched(tmp_path: Path, kind: str, shape: tuple[int, int], lines: int) -> None:
    path = tmp_path / "story.txt"
    path.write_text(STORY[:400])
    config = TextSSMNConfig(
        vocab_size=256, hidden_dim=16, num_layers=2, num_heads=2, layer_types=("static", kind), memory_slots=9
    )
    setup = Setup.of(TextSSMN(config).eval(), TOKENIZER, str(path), speed=0.0)

    async def script(app: WatchApp, pilot: Pilot[None]) -> None:
        (session,) = app.sessions
        await until(pilot, lambda: session.latest.status == "ended")
        (view,) = app.query(View)
        await until(pilot, lambda: "ended" in said(view, "head"))
        await until(pilot, lambda: view.query_one(Heat).levels.shape == shape)
        assert len(said(view, "lines").splitlines()) == lines
        assert said(view, "settings").split() == ["›", "speed", "as", "fast", "as", "it", "goes"]
        await pilot.press("down", "left", "a")
        assert session.latest.speed is not None

    watched(setup, script)


def test_settings_turn_in_steps(tmp_path: Path) -> None:
    setup = text_setup(tmp_path)
    session: Any = setup.session()
    update = session.latest
    assert turned("speed", update, setup, 1) == {"speed": None}
    assert turned("speed", update, setup, -1) == {"speed": round(10**3.75)}
    assert turned("eta_scale", update, setup, -1) == {"eta_scale": pytest.approx(10**-0.25)}
    assert turned("write_threshold", update, setup, -1) == {"write_threshold": 0.0}
    session.close()


def test_sparklines_and_shades() -> None:
    assert sparkline([7.0, 1.0, float("nan"), 2.0], 3) == "▄ █"
    assert sparkline([], 3) == "" and sparkline([0.0, 0.0], 2) == "  "
    assert sparkline([-1.0, 1.0], 2) == " █"
    light = [sum(shade(value / 10, dark=False)) for value in range(11)]
    assert light == sorted(light, reverse=True)
    assert shade(0.5, dark=True)[2] < shade(-0.5, dark=True)[2]


def test_maps_of_several_heads_fit_the_width() -> None:
    memory = torch.zeros(3, 20, 30)
    memory[1, 11, 17] = -4.0
    memory[2, 0, 0] = 2.0
    wide, narrow = fitted(picture(memory), 100, 40), fitted(picture(memory), 34, 40)
    assert wide.shape == (20, 92) and wide[11, 31 + 17] == -SHADES and wide[0, 62] == SHADES // 2
    assert fitted(picture(memory), 100, 7).shape == narrow.shape
    assert narrow.shape == (7, 32) and narrow[3, 11 + 5] == -SHADES and np.count_nonzero(narrow) == 2
