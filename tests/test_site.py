"""The documentation site: every page in its navigation, every public name on a page, and a build without warnings."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import ssmn
from ssmn.cli import VERBS

yaml = pytest.importorskip("yaml", reason='the extra "docs" is not installed')
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

INTERNAL = {"cli", "demo", "native"}
"""Modules without a page: the command line has its own, the demonstrations are commands."""


def hook(name: str) -> ModuleType:
    """One of the site's hooks."""
    pytest.importorskip("mkdocs", reason='the extra "docs" is not installed')
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def navigation() -> list[str]:
    """The pages that the navigation names, in order."""

    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for part in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            yield from pages(part)

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return list(pages(yaml.safe_load(text[text.index("\nnav:") :])["nav"]))


def test_every_page_is_in_the_navigation_once() -> None:
    there = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    there += hook("elsewhere").PAGES.values()
    named = Counter(navigation())
    assert sorted(set(there) - named.keys()) == [], "pages without a line in mkdocs.yml's nav"
    assert sorted(named.keys() - set(there)) == [], "lines of mkdocs.yml's nav without a page"
    assert [page for page, times in named.items() if times > 1] == []


def test_what_stands_elsewhere_is_there() -> None:
    assert all((ROOT / path).exists() for path in hook("elsewhere").PAGES)


@pytest.mark.parametrize(
    ("page", "text", "shown"),
    [
        ("text.md", "[log](../experiments/LOG.md)", "[log](log.md)"),
        ("usage/train.md", "[w](../../experiments/LOG.md#a)", "[w](../log.md#a)"),
        ("log.md", "[q](../docs/quality.md)", "[q](quality.md)"),
        ("streaming.md", "[e](../examples/tune_the_memory.py)", "[e](examples/tune-the-memory.md)"),
        ("tour.md", "[examples/](../examples)", "[examples/](examples/index.md)"),
        ("tour.md", "[own](#install), [m](mathematics.md), [h](https://a.b/c)", None),
        ("anomalies.md", "![taxi](assets/anomalies-taxi.png)", None),
        ("tour.md", "[the Makefile](../Makefile) says", "the Makefile says"),
        ("tour.md", "```\n[log](../experiments/LOG.md)\n```", None),
        ("log.md", "Two:\n- a\n- b", "Two:\n\n- a\n- b"),
    ],
)
def test_links_lead_to_pages_of_the_site(page: str, text: str, shown: str | None) -> None:
    assert hook("elsewhere").relinked(text, page) == (text if shown is None else shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("k from h_{t−1}, S_0", "k from h<sub>t−1</sub>, S<sub>0</sub>"),
        ("`a_t` and k_tᵀ, W_f.", "`a_t` and k<sub>t</sub>ᵀ, W<sub>f</sub>."),
        ("text\n\n    S_t = a_t\n\nh_t, d_model", "text\n\n    S_t = a_t\n\nh<sub>t</sub>, d_model"),
        ("(1 − λ)^g", "(1 − λ)<sup>g</sup>"),
        ("```\nh_t\n```", None),
        ("[h](a/b_c.md#x_y)", None),
    ],
)
def test_formulas_in_text_have_subscripts(text: str, shown: str | None) -> None:
    assert hook("formulas").subscripted(text) == (text if shown is None else shown)


def test_every_public_module_has_a_page() -> None:
    package = Path(ssmn.__file__).parent
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    public = {name for name in modules if not name.startswith("_")} - INTERNAL
    assert sorted(public) == sorted(page.stem for page in (DOCS / "api").glob("*.md") if page.stem != "index")
    for name in public - {"interfaces"}:
        assert f"::: ssmn.{name}\n" in (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: (\S+)$", (DOCS / "api" / "interfaces.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert documented and all(importlib.util.find_spec(name) for name in documented)


def test_every_public_name_is_listed() -> None:
    listed = re.findall(r"`(ssmn\.\w+)`", (DOCS / "api" / "index.md").read_text(encoding="utf-8"))
    assert {f"ssmn.{name}" for name in ssmn.__all__} <= set(listed)


def test_the_command_line_page_has_every_verb_and_option() -> None:
    commands = hook("commands")
    assert commands.MARK in (DOCS / "command-line.md").read_text(encoding="utf-8")
    page = commands.reference()
    titles = re.findall(r"^##+ (ssmn .+)$", page, re.MULTILINE)
    assert {title.split()[1] for title in titles} == set(VERBS)
    assert "ssmn state merge" in titles and "| `--text <path>` |" in page
    assert "ssmn state info monday.safetensors\n" in page and "\b" not in page


def test_home_page_runs() -> None:
    (program,) = re.findall(
        r"^```python\n(.*?)^```$", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL | re.M
    )
    names: dict[str, Any] = {}
    exec(compile(program, "docs/index.md", "exec"), names)
    assert names["later"].position.tolist() == [2000] and isinstance(names["y"], torch.Tensor)


def test_every_claim_of_the_seed_has_a_verdict() -> None:
    page = (DOCS / "from-the-seed.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[.+\]\(#(.+)\) \| (.+) \|$", page, re.MULTILINE)
    sections = page.split("\n## ")[1:]
    titles = {section.splitlines()[0].lower().replace(" ", "-") for section in sections}
    assert {re.sub(r"[^\w-]", "", title) for title in titles} == {anchor for anchor, _ in rows}
    for section in sections[:-1]:
        assert re.search(r"\*\*Holds\b|does not hold", section), section.splitlines()[0]
        assert "ssmn" in section


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    pytest.importorskip("mkdocs", reason='the extra "docs" is not installed')
    folder = tmp_path_factory.mktemp("built") / "site"
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_built_pages_are_whole_and_fetch_nothing(site: Path) -> None:
    pages = {page.relative_to(site).as_posix(): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert {page.removesuffix(".md") + ".html" for page in navigation()} <= pages.keys()
    for name, html in pages.items():
        assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//", html), name
        assert "<p>:::" not in html, f"{name}: a module that is not documented"
        assert "<!-- the " not in html, f"{name}: a mark that was not replaced"
    assert 'id="ssmn.state.StreamState.save"' in pages["api/state.html"]
    assert 'id="ssmn.models.SSMN.step"' in pages["api/models.html"]
    assert "ssmn state merge" in pages["command-line.html"]
    assert "assets/runs/anomalies-dark.png#only-dark" in pages["finished-runs.html"]


@pytest.mark.slow
def test_site_opens_and_searches_from_disk(site: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason='the extra "dev" is not installed')
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.click("input[name=query]")
        page.keyboard.type("window attention", delay=20)
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        assert all(url.startswith(("file:", "data:", "about:")) for url in asked)
        for width in (1280, 390):
            for name in ("index.html", "benchmarks.html", "api/models.html"):
                page.set_viewport_size({"width": width, "height": 900})
                page.goto((site / name).as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width}"
        browser.close()
