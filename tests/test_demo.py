"""The demonstration on a slice of its text, its page, and the recipe of its corpus."""

from __future__ import annotations

import json
import lzma
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ssmn import plots
from ssmn.cli import main
from ssmn.demo import corpus, text
from ssmn.errors import FileError
from ssmn.training.corpus.readers import info

ASSETS = Path(str(text.ASSETS))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "report"
    assert main(["demo", "--bytes", "30000", "--out", str(folder)]) == 0
    return folder


class Links(HTMLParser):
    """Everything that a page would load, and the words in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.alt: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "poster")]
        self.alt += [value or "" for name, value in attrs if tag == "img" and name == "alt"]


def test_the_report_is_whole(report: Path) -> None:
    names = sorted(file.name for file in report.iterdir())
    assert names == [
        "1-memory-and-speed.png", "2-surprise.png", "3-second-reading.png", "4-state.png", "5-seed-table.png",
        "index.html", "numbers.json",
    ]  # fmt: skip
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in report.glob("*.png"))


def test_the_page_asks_for_nothing_from_outside(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    links = Links(page)
    assert len(links.loaded) == 20
    assert all(link.startswith("data:image/png;base64,") for link in links.loaded)
    assert all(word not in page for word in ("<script", "@import", "url(", "http:", "https:"))
    assert len(links.alt) == 5
    assert all(len(alt) > 40 for alt in links.alt)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_the_numbers_hold_together(report: Path) -> None:
    numbers = json.loads((report / "numbers.json").read_text())
    reading = numbers["reading"]
    assert reading["bytes"] == 30_000
    assert len(reading["points"]) > 3
    assert reading["points"][-1]["tokens"] <= reading["tokens"]
    assert 0 < reading["bits_per_byte"] < 8
    passage = numbers["passage"]
    assert passage["kilobytes"][-1] == pytest.approx(passage["bytes"] / 1e3)
    assert passage["mean"]["on"] < passage["mean"]["frozen"]
    assert passage["mean"]["on"] < passage["mean"]["off"]
    lengths = [row["length"] for row in numbers["twice"]["rows"]]
    assert lengths == [256 << n for n in range(len(lengths))]
    assert numbers["twice"]["rows"][0]["gain"] > 0.05
    assert abs(numbers["twice"]["rows"][0]["gain_off"]) < 0.01
    assert all(row["gain_output"] > row["gain"] for row in numbers["twice"]["rows"])
    story = numbers["story"]
    assert story["reloaded_identical"]
    assert story["future_identical"]
    assert story["parent_unchanged"]
    assert story["original"] == story["reloaded"]
    assert story["left"][-1] < story["right"][-1]


def test_what_is_shipped() -> None:
    held_out = lzma.decompress((ASSETS / "held-out.txt.xz").read_bytes())
    assert len(held_out) >= 3_500_000
    licences = (ASSETS / "TEXT-LICENCES.md").read_text(encoding="utf-8")
    assert "Python Software Foundation" in licences
    assert "The King James Bible" in licences
    material = text.Material.shipped()
    assert material.model.num_parameters() <= 5_000_000
    assert material.size == len(held_out)
    middle = material.passage(1_000_000, 5_000)
    assert middle in held_out
    assert middle.endswith(b"\n")
    assert held_out[held_out.index(middle) - 1 : held_out.index(middle)] == b"\n"


def test_too_little_text_and_missing_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="19,999 bytes of text are too few to show anything; wanted at least 20,000"):
        text.Material.shipped(19_999)
    monkeypatch.setattr(text, "ASSETS", tmp_path)
    with pytest.raises(FileError, match="lacks the shipped model or text; install the package again"):
        text.Material.shipped()


def test_a_drawing_of_every_look_has_its_background() -> None:
    reading = {
        "points": [{"bytes": n, "tokens": n, "resident_bytes": 1e8, "tokens_per_second": 1e3} for n in (1, 2, 3)],
        "cache_bytes_per_token": 4,
    }
    sizes = set()
    for dark in (False, True):
        for narrow in (False, True):
            look = plots.Look(dark=dark, narrow=narrow)
            figure = plots.memory_and_speed(reading, look)
            assert figure.get_facecolor()[:3] == pytest.approx(
                [int(look.paper[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            )
            assert plots.png(figure).startswith(b"\x89PNG")
            sizes.add(tuple(figure.get_size_inches()))
    assert len(sizes) == 2


INFO = """This is python3.11.info

\x1f
File: python3.11.info,  Node: Top,  Next: Lib,  Up: (dir)

* Menu:

* Lib::
\x1f
File: python3.11.info,  Node: Lib,  Next: Index,  Prev: Top,  Up: Top

2 Lib
*****

A see *note open(): 1a2. and *note close(): 3b. The next. With ‘code’(1) and it’s “fine”.
\t
   ---------- Footnotes ----------

   (1) https://example.org/

\x1f
File: python3.11.info,  Node: Sub,  Up: Lib

2.1 Sub of f(1)
===============

Body *note a
b: 9.

* Menu:

* Other::
\x1f
File: python3.11.info,  Node: Index,  Up: Top

no text
"""


def test_the_corpus_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "SHORTEST_CHAPTER", 10)
    lib, sub = info.chapters(INFO)
    assert (lib.part, lib.title) == ("Lib", "Lib")
    assert lib.text == 'Lib\n***\n\nA see open() and close(). The next. With `code` and it\'s "fine".\n'
    assert (sub.part, sub.title) == ("Lib", "Sub")
    assert sub.text == "Sub of f(1)\n===========\n\nBody a\nb.\n"
    with pytest.raises(FileError, match="has no info nodes; wanted the plain-text"):
        info.chapters("hello")


def a_corpus(folder: Path) -> Path:
    """Two genres of two sources; the long documents of each, and a short one."""
    sources = []
    for name, genre, documents in (
        ("plays", "prose", {"act-one": 1.5, "act-two": 1.1}),
        ("modules", "code", {"alpha": 1.2, "tiny": 0.1}),
    ):
        sources.append(
            {"name": name, "genre": genre, "title": f"The {name}", "licence": "public domain", "attribution": "Ours."}
        )
        for title, size in documents.items():
            path = folder / "held-out" / name / f"{title}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{title}\n" * int(size * corpus.LONG / (len(title) + 1) + 1))
        licence = folder / "licences" / name / "copyright"
        licence.parent.mkdir(parents=True)
        licence.write_text("Do with it what you like.\n")
    (folder / "licences.json").write_text(json.dumps({"sources": sources}))
    return folder


def test_the_long_documents_are_packed_a_genre_in_turn(tmp_path: Path) -> None:
    found = a_corpus(tmp_path / "text")
    documents = corpus.pack(found, tmp_path / "out")
    assert [path.stem for path in documents] == ["alpha", "act-one", "act-two"]
    packed = lzma.decompress((tmp_path / "out" / "held-out.txt.xz").read_bytes()).decode()
    assert packed == "\n\n".join(path.read_text().strip("\n") for path in documents) + "\n"
    licences = (tmp_path / "out" / "TEXT-LICENCES.md").read_text()
    assert licences.index("The modules: alpha") < licences.index("The plays: act-one")
    assert licences.count("Do with it what you like.") == 1
    assert "tiny" not in licences


def test_what_is_no_corpus_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"is no text corpus .*make it with python -m ssmn\.training\.corpus --out"):
        corpus.pack(tmp_path, tmp_path / "out")
    found = a_corpus(tmp_path / "text")
    for path in (found / "held-out").glob("*/*.txt"):
        path.write_text("short")
    with pytest.raises(FileError, match="has no document of 150,000 bytes or more"):
        corpus.pack(found, tmp_path / "out")
