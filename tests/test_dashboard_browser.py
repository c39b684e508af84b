"""The dashboard in a real browser: a stream is drawn, sliders act, forks part, lost connections are taken up again."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the extra "dashboard" is not installed')
pytest.importorskip("uvicorn", reason='the extra "dashboard" is not installed')
pytest.importorskip("playwright", reason="playwright is not installed")

import uvicorn
from playwright import sync_api as playwright

from ssmn.live import Hub, Limits, Session
from ssmn.live.command import Setup
from ssmn.live.guard import Door
from ssmn.live.server import make_app
from ssmn.training import Tokenizer
from tiny import row_model, text_model

CHROMIUM = Path("/usr/bin/chromium")
STORY = "the story that was read goes on and on, and nobody knows how it ends; " * 4_000
PATIENCE = 120_000
"""Milliseconds that a slow machine gets."""

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's Chromium is not installed")


class Served:
    """A dashboard on a free port, through a relay whose connections can be cut."""

    def __init__(self, setup: Setup) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.hub = Hub(setup.session, Limits())
        app = make_app(self.hub, Door("127.0.0.1", None, port=self.port), setup.about)
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]})
        self._thread.start()

    @property
    def sessions(self) -> list[Session]:
        return [session for _, session in self.hub._sessions.values()]

    def drop_connections(self) -> int:
        """Cuts what is open, as a lost network would; the server goes on. Returns how many."""
        open_now = list(self._server.server_state.connections)
        for connection in open_now:
            connection.transport.abort()
        return len(open_now)

    def close(self) -> None:
        self._server.should_exit = True
        self.hub.close()
        self._thread.join(30)
        self._listening.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


class Page:
    """A page, and what went wrong or elsewhere on it."""

    def __init__(self, browser: Any, served: Served) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.troubles: list[str] = []
        self.foreign: list[str] = []
        origin = f"http://127.0.0.1:{served.port}/"
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self._went(request.url, origin))
        self.page.goto(origin)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning", "trace"):
            self.troubles.append(message.text)

    def _went(self, url: str, origin: str) -> None:
        if not url.startswith((origin, "data:", "blob:")):
            self.foreign.append(url)

    def view(self, number: int = 0) -> Any:
        return self.page.locator(".view").nth(number)

    def position(self, number: int = 0) -> int:
        facts = self.view(number).locator(".facts").text_content() or "0"
        return int(facts.split()[0].replace(",", ""))

    def until(self, wanted: Any) -> None:
        deadline = time.monotonic() + PATIENCE / 1000
        while not wanted():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(50)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    made = Served(Setup.of(text_model().eval(), Tokenizer.for_bytes(), str(path), speed=80.0))
    yield made
    made.close()


def map_of(page: Page, number: int = 0) -> str:
    return page.view(number).locator("figure canvas").first.evaluate("canvas => canvas.toDataURL()")


def test_a_stream_is_shown_steered_forked_and_resumed(browser: Any, served: Served) -> None:
    page = Page(browser, served)
    page.view().locator(".facts").wait_for()
    page.until(lambda: page.position() > 100)
    (session,) = served.sessions
    assert "goes on and on" in (page.view().locator(".passage").text_content() or "")
    first = map_of(page)
    page.until(lambda: map_of(page) != first)
    assert page.view().locator(".chart .trace path.js-line").count() >= 5
    layers = page.view().locator(".chart svg.main-svg").first
    assert layers.evaluate("svg => getComputedStyle(svg).position") == "absolute"

    # a slider acts at once, and the keyboard moves it
    energy = session.latest.report.layers[0].energy[0]
    slider = page.view().locator("input[data-setting=eta_scale]")
    slider.evaluate("input => { input.value = -2; input.dispatchEvent(new Event('input')); }")
    page.until(lambda: session.latest.plasticity.eta_scale == pytest.approx(0.01))
    forgetting = page.view().locator("input[data-setting=decay_scale]")
    forgetting.focus()
    page.page.keyboard.press("End")
    page.until(lambda: session.latest.plasticity.decay_scale == pytest.approx(1000))
    assert "×1,000" in (forgetting.locator("xpath=preceding-sibling::output").text_content() or "")
    page.until(lambda: session.latest.report.layers[0].energy[0] < 0.1 * energy)
    page.view().locator(".trained").click()
    page.until(lambda: session.latest.plasticity.eta_scale == 1.0)

    # pause, checkpoint, rollback
    page.view().locator(".pause").click()
    page.until(lambda: page.view().locator(".status").text_content() == "paused")
    page.view().locator(".checkpoint").click()
    page.until(lambda: page.view().locator(".rollback").is_enabled())
    at = session.latest.report.position
    page.view().locator(".push input").fill("Something else!")
    page.view().locator(".push button").click()
    page.view().locator(".pause").click()
    page.until(lambda: page.position() > at + 20)
    page.until(lambda: "Something else!" in (page.view().locator(".passage").text_content() or ""))
    page.view().locator(".pause").click()
    page.until(lambda: session.latest.status == "paused")
    page.view().locator(".rollback").click()
    page.until(lambda: page.position() == at)

    # a fork: two views that part
    page.view().locator(".fork").click()
    page.until(lambda: page.page.locator(".view").count() == 2)
    page.until(lambda: len(served.sessions) == 2)
    fork = served.sessions[1]
    page.until(lambda: page.view(1).locator("figure canvas").count() > 0 and map_of(page, 1) == map_of(page, 0))
    page.view(1).locator("input[data-setting=eta_scale]").evaluate(
        "input => { input.value = -1; input.dispatchEvent(new Event('input')); }"
    )
    page.until(lambda: fork.latest.plasticity.eta_scale == pytest.approx(0.1))
    page.view(1).locator(".pause").click()
    page.until(lambda: page.position(1) > at + 100)
    assert page.position(0) == at and map_of(page, 1) != map_of(page, 0)
    page.until(lambda: "memories differ by" in (page.page.locator("#apart").text_content() or ""))
    assert session.latest.plasticity.eta_scale == 1.0

    # a dropped connection is taken up again, without a gap
    before = page.position(1)
    assert served.drop_connections() >= 2
    page.until(lambda: page.position(1) > before + 60)
    page.until(lambda: page.view(1).locator(".status").text_content() == "running")
    lost = [trouble for trouble in page.troubles if "net::ERR" in trouble]
    assert page.troubles == lost and page.foreign == []

    # a page that is loaded again finds both sessions
    page.page.reload()
    page.until(lambda: page.page.locator(".view").count() == 2)
    page.view(1).locator(".close").click()
    page.until(lambda: page.page.locator(".view").count() == 1 and fork.closed)
    page.page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_telephone(browser: Any, served: Served, theme: str) -> None:
    page = Page(browser, served)
    page.page.emulate_media(color_scheme=theme)
    page.page.set_viewport_size({"width": 390, "height": 844})
    page.until(lambda: page.position() > 20)
    wide = page.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    paper = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(246, 247, 249)", "dark": "rgb(13, 17, 23)"}[theme]
    heights = page.page.eval_on_selector_all("button, select", "all => all.map(x => x.getBoundingClientRect().height)")
    assert min(height for height in heights if height) >= 28
    assert page.troubles == [] and page.foreign == []
    page.page.close()


def test_rows_are_charted(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    names = "<b>hall</b> & <a href='https://example.com'>x</a>,y"
    path.write_text(f"{names}\n" + "\n".join(f"{n % 7},{n % 5}" for n in range(4_000)))
    served = Served(Setup.of(row_model().eval(), None, str(path), speed=200.0))
    try:
        page = Page(browser, served)
        page.until(lambda: page.position() > 60)
        page.until(lambda: page.view().locator(".rows .trace path.js-line").count() == 4)
        chart = page.view().locator(".rows")
        assert "<b>hall</b> & <a href=" in (chart.text_content() or "") and not chart.locator("a, b").count()
        page.page.set_viewport_size({"width": 390, "height": 844})  # one below the other, and not over each other
        drawn, lines = chart.locator("svg.main-svg").first, page.view().locator("section.lines")
        bottom, top = ("box => box.getBoundingClientRect().bottom", "box => box.getBoundingClientRect().top")
        page.until(lambda: drawn.evaluate(bottom) < lines.evaluate(top))  # once the chart is drawn again
        assert page.view().locator(".push").is_hidden() and page.troubles == [] and page.foreign == []
        page.page.close()
    finally:
        served.close()
