"""The report in a real browser: it opens from disk, asks the network for nothing, and answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmn.config import TextSSMNConfig
from ssmn.models import TextSSMN
from ssmn.plots import Look
from ssmn.plots.report import About, Reading, read, write_report
from ssmn.training import Tokenizer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path")

PATIENCE = 180_000
"""Milliseconds until the browser counts as stuck; a busy machine needs seconds."""
TEXT = "the cat <b>sat</b> on\nthe mat & the cat </script> é: " * 4


@pytest.fixture(scope="module")
def reading() -> Reading:
    torch.manual_seed(5)
    config = TextSSMNConfig(
        vocab_size=256, hidden_dim=12, num_layers=4, num_heads=2, window_size=6, memory_heads=2,
        layer_types=("static", "plastic", "plastic", "static"),
    )  # fmt: skip
    tokens = np.frombuffer(TEXT.encode(), np.uint8)
    return read(TextSSMN(config).eval(), Tokenizer.for_bytes(), [tokens], shown=120, top=4)


@pytest.fixture(scope="module")
def page_url(reading: Reading, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, About("A reading", "a model", "ssmn inspect"), reading.holdings, reading).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield found
        found.close()


class Opened:
    """The report in a window of its own, and what went wrong there."""

    def __init__(self, browser: Any, url: str, width: int, scheme: str) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url, timeout=PATIENCE)
        self.page.locator(".plot").last.locator(".main-svg").first.wait_for()

    def classes(self, selector: str) -> list[int]:
        """Numbers of the tokens that match."""
        script = "s => [...document.querySelectorAll('#text span')].flatMap((x, i) => x.matches(s) ? [i] : [])"
        return self.page.evaluate(script, selector)


@pytest.fixture(scope="module")
def wide(browser: Any, page_url: str) -> Iterator[Opened]:
    opened = Opened(browser, page_url, 1280, "light")
    yield opened
    opened.context.close()


def sources(reading: Reading, token: int, layer: int = 0) -> list[int]:
    """Numbers of the shown tokens that the read of one drew on."""
    found = reading.trace.positions[token, layer].tolist()
    return sorted(place - reading.first for place in found if place >= reading.first)


def test_it_opens_from_disk_draws_everything_and_asks_for_nothing(wide: Opened, page_url: str) -> None:
    assert wide.requests == [page_url]
    assert wide.wrong == []
    places = wide.page.locator(".plot")
    assert places.count() == 6
    for number in range(6):
        assert places.nth(number).locator(".main-svg").count() >= 1
    assert wide.page.locator("#text span").count() == 120


def test_the_text_reads_as_it_is(wide: Opened, reading: Reading) -> None:
    assert wide.page.locator("#text").evaluate("node => node.textContent") == "".join(reading.pieces)


def test_pointing_at_a_token_shows_what_its_read_drew_on(wide: Opened, reading: Reading) -> None:
    page = wide.page
    assert len(wide.classes(".chosen")) == 1  # so that there is something to see
    for token in (70, 95):
        page.locator("#text span").nth(token).scroll_into_view_if_needed()
        page.locator("#text span").nth(token).hover()
        assert wide.classes(".chosen") == [token]
        assert wide.classes(".source") == sources(reading, token)
        assert page.locator("#sources .place span").first.inner_text() == f"Token {reading.first + token:,}"
        strongest = page.locator("#sources li .meta").first.inner_text()
        place = int(reading.trace.positions[token, 0, 0])
        assert strongest.startswith(f"{place:,}")
        weight, length = float(reading.trace.weights[token, 0, 0]), float(reading.trace.reads[token, 0])
        assert f"{round(100 * abs(weight) / length)} %" in strongest
    assert wide.wrong == []


def test_a_click_pins_and_the_list_leads_to_the_source(wide: Opened, reading: Reading) -> None:
    page, token = wide.page, 88
    page.locator("#text span").nth(token).click()
    page.locator("#text span").nth(60).hover()
    assert wide.classes(".chosen") == [token]
    page.locator("#sources li button:enabled").last.click()
    shown = [place - reading.first for place in reading.trace.positions[token, 0].tolist() if place >= reading.first]
    assert wide.classes(".chosen") == [shown[-1]]
    page.get_by_role("button", name="unpin").click()
    assert page.get_by_role("button", name="unpin").count() == 0


def test_the_arrow_keys_walk_along_the_text(wide: Opened, reading: Reading) -> None:
    page = wide.page
    page.locator("#text span").nth(50).click()
    page.keyboard.press("ArrowRight")
    assert wide.classes(".chosen") == wide.classes(":focus") == [51]
    assert wide.classes(".source") == sources(reading, 51)
    page.keyboard.press("End")
    assert wide.classes(":focus") == [119]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert wide.classes(":focus") == [0]
    page.keyboard.press("Escape")
    assert page.get_by_role("button", name="unpin").count() == 0


def test_the_marks_switch_between_importance_and_surprise_and_layers(wide: Opened) -> None:
    page = wide.page
    read_marks = "() => [...document.querySelectorAll('#text span')].map(x => x.style.getPropertyValue('--a'))"
    seen = []
    for name in ("Surprise", "None", "Importance"):
        page.get_by_text(name, exact=True).click()
        seen.append(page.evaluate(read_marks))
        assert ("surprise" in (page.locator("#the-text").get_attribute("class") or "")) == (name == "Surprise")
        unit = page.locator(".scale span").last.inner_text()
        assert name == "None" or unit.endswith("bits") == (name == "Surprise")
    surprise, none, importance = seen
    assert set(none) == {"0.000"}
    assert len({*surprise}) > 5 and surprise != importance and len({*importance}) > 5
    page.locator("#layer").select_option("1")
    assert page.evaluate(read_marks) != importance
    page.locator("#layer").select_option("0")
    assert page.evaluate(read_marks) == importance


def test_another_memory_can_be_drawn(wide: Opened) -> None:
    page = wide.page
    numbers = "name => document.querySelector(`.plot[data-figure=${name}]`).data[0].z.bdata"
    before = page.evaluate(numbers, "memory")
    page.locator("select[data-for='memory spectrum']").select_option("3")
    assert page.evaluate(numbers, "memory") != before
    assert wide.wrong == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "dark"), (390, "light")])
def test_it_fits_narrow_and_dark(browser: Any, page_url: str, width: int, scheme: str) -> None:
    opened = Opened(browser, page_url, width, scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    look = Look(dark=scheme == "dark")
    colour = tuple(int(look.paper[n : n + 2], 16) for n in (1, 3, 5))
    for node in ("section", ".plot .main-svg"):
        found = page.locator(node).first.evaluate("node => getComputedStyle(node).backgroundColor")
        assert found == f"rgb{colour}"
    wide_ones = "() => [...document.querySelectorAll('.plot')].filter(p => p.scrollWidth > p.clientWidth + 1).length"
    assert page.evaluate(wide_ones) == 0
    assert opened.wrong == []
    opened.context.close()
