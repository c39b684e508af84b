"""The recipe of the text corpus, on packages that are made here; the real thing is a slow test."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import re
import sqlite3
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssmn.errors import ConfigError, FileError
from ssmn.training.corpus import Document, Member, Source, SplitConfig, build_corpus, load_recipe
from ssmn.training.corpus import __main__ as command
from ssmn.training.corpus import build as build_module
from ssmn.training.corpus import fetch as fetch_module
from ssmn.training.corpus.archives import members
from ssmn.training.corpus.cleaning import plain, without_notice
from ssmn.training.corpus.duplicates import remove_duplicates
from ssmn.training.corpus.fetch import fetch
from ssmn.training.corpus.readers import READERS
from ssmn.training.corpus.splits import choose, split

SMALL = SplitConfig(
    held_out=0.1, validation=0.1, long_bytes=4_000, longest_bytes=9_000, held_out_long=1, validation_long=1,
    long_share=0.5, short_share=0.2,
)  # fmt: skip


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def deb(files: dict[str, str | bytes]) -> bytes:
    """A Debian package: an `ar` archive of a version, control data, and the files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    package = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", packed.getvalue())):
        package += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return package


def wheel(files: dict[str, str | bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def words(topic: str, count: int) -> str:
    """A paragraph of words, all letters, that no other topic has."""
    numbered = " ".join(f"{topic}{number * number % 10_007}x{number}" for number in range(count))
    return numbered.translate(str.maketrans("0123456789", "abcdefghij"))


def function(topic: str) -> str:
    lines = "\n".join(f'    print("{words(topic + str(number), 6)}")' for number in range(6))
    return f"def {topic}():\n{lines}\n"


def chapter(topic: str, paragraphs: int) -> str:
    return "\n\n".join(words(f"{topic}p{paragraph}n", 20) for paragraph in range(paragraphs))


SHARED = words("shared", 60)
LONG = {f"long{number}": chapter(f"book{number}", 22) for number in range(4)}
SHORT = {f"short{number}": chapter(f"tale{number}", 3) for number in range(30)}


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Two sources, prose and code, whose packages already stand in `tmp_path / "cache"`."""
    prose = {f"plays/{name}.md": f"# {name}\n\n{text}\n\n{SHARED}\n" for name, text in {**LONG, **SHORT}.items()}
    notice = "#!/usr/bin/env python\n# Copyright 2020 Somebody\n# All rights reserved.\n\n"
    code = {
        f"lib/pack{number}/part{part}.py": notice + function(f"pack{number}part{part}")
        for number in range(30)
        for part in range(3)
    }
    packages = {
        "plays_1.0_all.deb": deb({**prose, "usr/share/doc/plays/copyright": "Public domain.\n"}),
        "code-2.1-py3-none-any.whl": wheel({**code, "code.dist-info/LICENSE": "MIT, in full.\n"}),
    }
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, data in packages.items():
        (cache / name).write_bytes(data)
    common: dict[str, Any] = {"sha256": "", "attribution": "By nobody."}
    made = [
        Source(name="plays", title="Plays", genre="prose", client="apt", package="plays", version="1.0",
               file="plays_1.0_all.deb", licence="public domain", reader="plays", include=("plays/*.md",),
               licence_files=("usr/share/doc/*/copyright",), **common),
        Source(name="code", title="Code", genre="code", client="pip", package="code", version="2.1",
               file="code-2.1-py3-none-any.whl", licence="MIT", reader="code", include=("lib/*.py",),
               exclude=("*/part2.py",), licence_files=("*/LICENSE",), options={"root": "lib/"}, **common),
    ]  # fmt: skip
    return [dataclasses.replace(source, sha256=digest(packages[source.file])) for source in made]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def paragraphs(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.txt")):
        yield from path.read_text().strip("\n").split("\n\n")


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["corpus", *arguments])
    try:
        command.typer.run(command.main)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def test_the_same_packages_give_the_same_bytes(sources: list[Source], tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        build_corpus(tmp_path / name, sources, config=SMALL, cache=tmp_path / "cache")
        written.append(contents(tmp_path / name))
    assert written[0] == written[1]
    assert {path.split("/")[0] for path in written[0]} == {
        "train", "validation", "held-out", "licences", "licences.json", "LICENCES.md",
    }  # fmt: skip
    other = dataclasses.replace(SMALL, seed=1)
    build_corpus(tmp_path / "one", sources, config=other, cache=tmp_path / "cache")
    assert sorted(contents(tmp_path / "one" / "held-out")) != sorted(contents(tmp_path / "two" / "held-out"))


def test_nothing_held_out_is_trained_on(sources: list[Source], tmp_path: Path) -> None:
    records = build_corpus(tmp_path / "out", sources, config=SMALL, cache=tmp_path / "cache")
    files = {part: contents(tmp_path / "out" / part) for part in ("train", "validation", "held-out")}
    for part, names in files.items():
        assert {name.split("/")[0] for name in names} == {"plays", "code"}, part
    assert sum(map(len, files.values())) == len({name for names in files.values() for name in names}) == 64
    # Every play ends with the same paragraph: where it is held out it stays, and it stands nowhere else.
    found = {part: set(paragraphs(tmp_path / "out" / part)) for part in files}
    assert SHARED in found["held-out"]
    assert not any(paragraph in found["train"] | found["validation"] for paragraph in found["held-out"])
    assert not found["validation"] & found["train"]
    plays = records["sources"][0]
    assert plays["documents"]["held-out"] + plays["duplicates"]["exact_leaks"] == 34
    assert all(source["duplicates"]["shared_shingles"] == 0 for source in records["sources"])
    for part in ("held-out", "validation"):
        assert [len(data) > SMALL.long_bytes for name, data in files[part].items() if "long" in name] == [True]


def test_documents_stay_whole_and_clean(sources: list[Source], tmp_path: Path) -> None:
    build_corpus(tmp_path / "out", sources, config=SMALL, cache=tmp_path / "cache")
    texts = {Path(name).stem: data.decode() for name, data in contents(tmp_path / "out").items() if "txt" in name}
    assert len(texts["pack7"].split("\n\n")) == 4
    assert texts["pack7"].startswith('# pack7/part0.py\n\ndef pack7part0():\n    print("')
    assert "# pack7/part1.py" in texts["pack7"]
    assert not any("part2" in text or "Copyright" in text for text in texts.values())
    assert texts["short4"].startswith("short4\n======\n\ntaleepanaxa ")


def test_records_name_package_sum_licence_and_sizes(sources: list[Source], tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = build_corpus(out, sources, config=SMALL, cache=tmp_path / "cache")
    assert json.loads((out / "licences.json").read_text()) == records
    page = (out / "LICENCES.md").read_text()
    for source, record in zip(sources, records["sources"], strict=True):
        package = tmp_path / "cache" / source.file
        assert record["sha256"] == digest(package.read_bytes()) == source.sha256
        assert record["bytes_package"] == package.stat().st_size
        assert (record["version"], record["licence"], record["is_pinned"]) == (source.version, source.licence, True)
        assert source.package in record["command"]
        assert record["bytes_read"] > record["bytes_cleaned"] * 0.5
        for part, size in record["bytes"].items():
            assert size == sum(len(data) for data in contents(out / part / source.name).values())
        for wanted in (source.licence, source.attribution, source.sha256, source.version, source.file):
            assert wanted in page
    assert (out / "licences" / "plays" / "copyright").read_text() == "Public domain.\n"
    assert (out / "licences" / "code" / "LICENSE").read_text() == "MIT, in full.\n"


class Registry:
    """Stands in for the package clients: what it holds comes, anything else is refused."""

    def __init__(self, held: dict[str, tuple[str, bytes]]) -> None:
        self.held = held
        self.asked: list[str] = []

    def __call__(self, arguments: list[str], *, cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        wanted = arguments[-1]
        self.asked.append(wanted)
        if wanted not in self.held:
            return subprocess.CompletedProcess(arguments, 1, "", f"reading\nE: {wanted} was not found\n")
        name, data = self.held[wanted]
        (Path(cwd) / name).write_bytes(data)
        return subprocess.CompletedProcess(arguments, 0, "", "")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    def install(**held: tuple[str, bytes]) -> Registry:
        made = Registry({name.replace("__", "=="): value for name, value in held.items()})
        monkeypatch.setattr(fetch_module.subprocess, "run", made)
        return made

    return install


def test_packages_are_fetched_once(sources: list[Source], tmp_path: Path, registry: Callable[..., Registry]) -> None:
    plays, code = ((tmp_path / "cache" / source.file).read_bytes() for source in sources)
    registry_ = registry()
    registry_.held = {"plays=1.0": (sources[0].file, plays), "code==2.1": (sources[1].file, code)}
    first = build_corpus(tmp_path / "out", sources, config=SMALL)
    assert registry_.asked == ["plays=1.0", "code==2.1"]
    registry_.held = {}
    assert build_corpus(tmp_path / "out", sources, config=SMALL) == first
    assert len(registry_.asked) == 2


def test_a_run_that_was_stopped_goes_on(
    sources: list[Source], tmp_path: Path, registry: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_corpus(tmp_path / "whole", sources, config=SMALL, cache=tmp_path / "cache")
    plays, code = ((tmp_path / "cache" / source.file).read_bytes() for source in sources)
    registry_ = registry()
    registry_.held = {"plays=1.0": (sources[0].file, plays)}
    with pytest.raises(FileError, match=r"package code of source .code. cannot be fetched"):
        build_corpus(tmp_path / "out", sources, config=SMALL)
    registry_.held = {"code==2.1": (sources[1].file, code)}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_slugs", stop)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(tmp_path / "out", sources, config=SMALL)
    assert not (tmp_path / "out" / "train").exists()
    asked = len(registry_.asked)
    assert build_corpus(tmp_path / "out", sources, config=SMALL) == whole
    assert len(registry_.asked) == asked
    assert {path: data for path, data in contents(tmp_path / "out").items() if not path.startswith(".")} == contents(
        tmp_path / "whole"
    )


def test_what_was_written_outlives_a_failure(sources: list[Source], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_corpus(out, sources, config=SMALL, cache=tmp_path / "cache")
    before = contents(out)
    (tmp_path / "cache" / sources[1].file).write_bytes(b"damaged")
    with pytest.raises(FileError, match=r"has SHA-256 .*; wanted"):
        build_corpus(out, sources, config=SMALL, cache=tmp_path / "cache")
    assert contents(out) == before


def test_another_version_serves_and_says_so(
    sources: list[Source], tmp_path: Path, registry: Callable[..., Registry]
) -> None:
    plays = (tmp_path / "cache" / sources[0].file).read_bytes()
    registry_ = registry(plays=("plays_1.1_all.deb", plays))
    notes: list[str] = []
    package = fetch(sources[0], tmp_path / "new", notes.append)
    assert registry_.asked == ["plays=1.0", "plays"]
    assert (package.version, package.is_pinned, package.sha256) == ("1.1", False, digest(plays))
    assert notes == ["plays: plays_1.0_all.deb is not to be had; took plays_1.1_all.deb instead."]
    again = fetch(sources[0], tmp_path / "new", notes.append)
    assert again == package
    assert len(registry_.asked) == 2
    package.path.write_bytes(b"changed on disk")
    with pytest.raises(FileError, match=f"wanted {digest(plays)}"):
        fetch(sources[0], tmp_path / "new")


def test_a_package_that_changed_under_its_name_is_refused(
    sources: list[Source], tmp_path: Path, registry: Callable[..., Registry]
) -> None:
    registry_ = registry()
    registry_.held = {"plays=1.0": (sources[0].file, b"other bytes")}
    with pytest.raises(FileError, match="should not be trusted"):
        fetch(sources[0], tmp_path / "new")


def test_offline_every_missing_package_is_named_with_a_way_out(
    sources: list[Source], tmp_path: Path, registry: Callable[..., Registry]
) -> None:
    registry()
    with pytest.raises(FileError) as caught:
        build_corpus(tmp_path / "out", sources, config=SMALL)
    message = str(caught.value)
    for source in sources:
        assert f"package {source.package} of source '{source.name}'" in message
        assert f"put {source.file} into {tmp_path / 'out' / '.downloads'}" in message
        assert f"--without {source.name}" in message
    assert "E: plays=1.0 was not found" in message
    assert "apt-get update" in message


def test_a_client_that_is_not_there_is_named(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileError, match=r"No such file or directory: 'apt-get'"):
        fetch(sources[0], tmp_path / "new")


def recipe_text(sources: list[Source]) -> str:
    lines = []
    for source in sources:
        lines.append("[[source]]")
        for name, value in dataclasses.asdict(source).items():
            inline = (
                "{ " + ", ".join(f'{key} = "{text}"' for key, text in value.items()) + " }" if name == "options" else ""
            )
            lines.append(f"{name} = {inline or json.dumps(value)}")
    return "\n".join(lines)


def test_the_command(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(sources))
    assert load_recipe(recipe) == sources
    common = ["--recipe", str(recipe), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert run(*common, "--only", "plays", monkeypatch=monkeypatch) == 0
    assert "public domain" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == ["plays"]
    assert run(*common, "--without", "song", monkeypatch=monkeypatch) == 1
    assert "there is no source 'song'; the recipe has plays, code." in capsys.readouterr().err
    assert run(*common, "--without", "plays", "--only", "plays", monkeypatch=monkeypatch) == 1
    assert "no source is left" in capsys.readouterr().err

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "build_corpus", stop)
    assert run(*common, monkeypatch=monkeypatch) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("licence = ", "missing settings ['licence']"),
        ('colour = "red"', "unknown settings ['colour']"),
        ('genre = "verse"', "genre='verse'; wanted prose, documentation, code."),
        ('client = "ftp"', "client='ftp'; wanted apt, pip."),
        ("limit = -1", "a limit that is not negative"),
    ],
)
def test_an_impossible_recipe_is_refused(sources: list[Source], tmp_path: Path, change: str, message: str) -> None:
    name, _, value = change.partition(" = ")
    lines = [line for line in recipe_text(sources[:1]).split("\n") if not line.startswith(f"{name} = ")]
    (tmp_path / "recipe.toml").write_text("\n".join([*lines, *([change] if value else [])]))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_recipe(tmp_path / "recipe.toml")


def test_the_shipped_recipe_is_permissive_and_pinned() -> None:
    recipe = load_recipe()
    permissive = {"public domain", "PSF-2.0", "PostgreSQL", "MIT", "MIT OR Apache-2.0", "BSD-3-Clause", "BSD"}
    for source in recipe:
        assert source.licence in permissive, source.name
        assert re.fullmatch("[0-9a-f]{64}", source.sha256), source.name
        assert source.reader in READERS
        assert source.licence_files or "comes with python-library-core" in source.attribution
        assert source.version.split(":")[-1].split("+")[0] in source.file
    assert {source.reader for source in recipe} == set(READERS)


def test_the_limit_and_the_split_do_not_depend_on_other_sources() -> None:
    source = load_recipe()[0]
    documents = [Document(f"doc{number}", "x" * (500 + 37 * number) + "\n") for number in range(40)]
    limited = dataclasses.replace(source, limit=9_000)
    chosen = choose(limited, documents, seed=3)
    assert 8_000 < sum(document.size for document in chosen) <= 9_000
    assert chosen == [document for document in documents if document in chosen]
    assert choose(limited, documents[::-1], seed=3) == chosen[::-1]
    assert choose(limited, documents, seed=4) != chosen
    other = dataclasses.replace(source, name="other", genre="code")
    alone = split([source], {source.name: documents}, SMALL)
    both = split([other, source], {source.name: documents, "other": documents[:9]}, SMALL)
    assert alone.held_out[source.name] == both.held_out[source.name]
    assert alone.validation[source.name] == both.validation[source.name]


def test_duplicates_by_tier() -> None:
    held, near, far = (
        words("held", 30),
        words("held", 18) + " " + words("more", 10),
        words("held", 12) + words("far", 40),
    )
    short = "A short paragraph, with more than forty letters."
    once = words("once", 40)
    tiers = [
        [f"{held}\n\n{short}\n", f"{held}\n\nTail.\n"],
        [f"{held}\n\n{once}\n"],
        [
            f"{near}\n\n{short}\n\n{far}\n\nTail.\n",
            f"{once}\n\n{words('new', 50)}\n",
            f"{words('new', 50)}\n\n{words('new', 50)}\n\nEnd.\n",
        ],
    ]
    (held_out, validation, train), counts = remove_duplicates(tiers)
    assert held_out == tiers[0]
    assert validation == [f"{once}\n"]
    assert train == [f"{far}\n\nTail.\n", f"{words('new', 50)}\n", "End.\n"]
    assert (counts[2][0].near_leaks, counts[2][0].exact_leaks, counts[2][0].paragraphs) == (1, 1, 4)
    assert counts[2][0].shared_shingles > 0
    assert (counts[2][1].exact_leaks, counts[2][2].repeats) == (1, 2)
    (_, _, kept), _ = remove_duplicates(tiers, repeats=False)
    assert kept[2] == tiers[2][2]


def test_repetition_within_a_document_stays() -> None:
    text = f"{words('again', 40)}\n\n{words('again', 40)}\n"
    (_, cleaned), _ = remove_duplicates([["Other words.\n"], [text]])
    assert cleaned == [text]


def test_plain_text() -> None:
    raw = "\ufeff“One” and\u00a0‘two’…  \r\n\r\n\r\n\r\nthree\x07 <someone@home.org> four <a@example.org>\t\n"
    assert plain(raw) == "\"One\" and 'two'...\n\nthree four <a@example.org>\n"
    assert plain("a\n\n\n\n\nb", empty_lines=2) == "a\n\n\nb\n"


def test_licence_notices_at_the_head_of_code_go() -> None:
    head = "#!/bin/sh\n# -*- coding: utf-8 -*-\n\n# Copyright (c) 2001 Nobody.\n# Licensed to no one.\n\n"
    code = "# What it does.\nx = 1\n# Copyright of y\n"
    assert without_notice(head + code, "#") == code
    assert without_notice("// SPDX-License-Identifier: MIT\n\npackage a\n", "//") == "package a\n"
    assert without_notice("# only a comment\n", "#") == "# only a comment\n"


def read(reader: str, path: str, data: str | bytes, **options: Any) -> dict[str, str]:
    raw = data.encode() if isinstance(data, str) else data
    return {document.name: document.text for document in READERS[reader]([Member(path, raw)], **options)}


def test_html_becomes_filled_text() -> None:
    page = (
        """<html><head><title>no</title></head><body><p>outside</p><main><div class="nav x">no <code>no</code></div>
    <h1>The <code>Title</code></h1><p>Some <b>bold</b> words &amp; <code>co<code>de</code></code>,<br>a line.</p>
    <ul><li>one<li><p>two</p></ul><ol><li>first</li><li>second</li></ol>
    <dl><dt>term</dt><dd>meaning</dd></dl><pre>  a = 1\n\n  b</pre><table><tr><th>x</th><td><p>y z</p></td></tr></table>
    <script>no()</script></main><p>outside</p></body></html>"""
        + " " * 400
    )
    page = page.replace("words", "words " * 90)
    text = read("html", "doc/page.html", page, root="doc/", main="main", skip=["nav"])["page"]
    assert text.startswith("The Title\n=========\n\nSome bold words words")
    assert text.endswith(
        "& `code`,\na line.\n\n- one\n- two\n\n1. first\n2. second\n\nterm\n  meaning\n\n    a = 1\n\n    b\n\n"
        "x | y z\n"
    )
    assert "no" not in text.split()
    assert "outside" not in text
    assert max(map(len, text.split("\n"))) <= 78
    names = [Member(f"d/{name}.html", page.encode()) for name in ("a-1", "a-2", "b")]
    for unit, wanted in (("prefix", ["d/a", "d/b"]), ("folder", ["d"]), ("page", ["d/a-1", "d/a-2", "d/b"])):
        assert [each.name for each in READERS["html"](names, main="main", unit=unit)] == wanted


MDOC = r""".\" Copyright nobody
.\" Redistribution and
.\" use in source and binary forms are permitted.
.Dd March 30, 2020
.Dt FETCH 3
.Os
.Sh NAME
.Nm fetch , refetch
.Nd get a thing
.Sh SYNOPSIS
.In stdio.h
.Ft int
.Fn fetch "const char *path" "int flags"
.Ft void
.Fo refetch
.Fa "int a" "int b"
.Fc
.Sh DESCRIPTION
The
.Fn fetch
function reads
.Fa path ,
.Pq see Xr open 2
or
.Dv O_RDONLY Ns -like
flags
.Ql \-v .
.Bl -tag -width x
.It Fl v , Fl -verbose
Says
.Dq more
.Po
and more
.Pc .
.El
.Bd -literal
int	x = 1; \e
.Ed
.Sh AUTHORS
.An A. Nobody Aq Mt nobody@nowhere.org
.Sh SEE ALSO
.Xr close 2
"""


def test_manual_pages_become_filled_text() -> None:
    text = read("mdoc", "man/man3/fetch.3freebsd", MDOC + ".Pp\n" + "More words.\n" * 40)["man3/fetch"]
    assert text.startswith(
        """fetch(3)
========

NAME
    fetch, refetch - get a thing

SYNOPSIS
    #include <stdio.h>
    int
    fetch(const char *path, int flags)
    void
    refetch(int a, int b)

DESCRIPTION
    The fetch() function reads path, (see open(2)) or O_RDONLY-like flags
    `-v'.

    -v, --verbose
        Says "more" (and more).

    int     x = 1; \\

SEE ALSO
    close(2)
"""
    )
    for line in ("GNU General Public License", "Parts are reprinted from a standard."):
        assert read("mdoc", "man/man3/free.3", f"{MDOC}{line}\n" + "words\n" * 99) == {}
    assert (
        read("mdoc", "man/man3/ours.3", MDOC.replace("are permitted", "?").replace("use in", "") + "words\n" * 99) == {}
    )
    assert read("mdoc", "man/man3/old.3", ".TH OLD 3\n" + "words\n" * 99) == {}
    twins = [Member(f"man3/{name}.3", (MDOC + "words\n" * 99).encode()) for name in ("one", "two")]
    assert [each.name for each in READERS["mdoc"](twins)] == ["man3/one"]


def test_verses_become_books() -> None:
    database = sqlite3.connect(":memory:")
    database.executescript(
        """CREATE TABLE Books(TestamentID INT, BookID INT, ShortName TEXT, LongName TEXT);
        CREATE TABLE Bible(TestamentID INT, BookID INT, ChapterID INT, VerseID INT, Passage1 TEXT, Passage2 TEXT);
        INSERT INTO Books VALUES (1, 1, 'One', 'Book One'), (2, 1, 'Two', 'Book Two');
        INSERT INTO Bible VALUES (2, 1, 1, 1, '1:1 Other.', ''), (1, 1, 2, 1, '2:1 C.', ''),
        (1, 1, 1, 2, '1:2 B.', 'Then.'), (1, 1, 1, 1, '1:1 A.', '');"""
    )
    texts = read("bible", "Bible.db", database.serialize())
    database.close()
    assert texts == {
        "One": "Book One\n========\n\n1:1 A.\n1:2 B.\nThen.\n\n2:1 C.\n",
        "Two": "Book Two\n========\n\n1:1 Other.\n",
    }


def test_commentaries_become_chapters() -> None:
    markup = [
        '<chapter osisID="Ps.1"/><title>Psalm 1</title><div type="x-p"/>Words of <hi>the <note>no</note>first</hi>, '
        "ver. #(3). <row><cell>Cell</cell><cell>(1-2)</cell></row>",
        '<verse osisID="Ps.2.1"/>Second &amp; last.',
    ]
    blocks = [zlib.compress(text.encode()) for text in markup]
    offsets = [0, len(blocks[0])]
    index = b"".join(
        struct.pack("<III", offset, len(block), 0) for offset, block in zip(offsets, blocks, strict=True)
    ) + struct.pack("<III", 0, 0, 0)
    files = [Member("m/ot.czs", index), Member("m/ot.czv", b""), Member("m/ot.czz", b"".join(blocks))]
    texts = {each.name: each.text for each in READERS["sword"](files, unit="chapter")}
    assert texts == {"Ps 1": "Psalm 1\n\nWords of the first, ver. 3.\n\nCell (1-2)\n", "Ps 2": "Second & last.\n"}
    assert [each.name for each in READERS["sword"](files, unit="book")] == ["Ps"]


def serialized(lines: list[str]) -> bytes:
    body = b"X\n" + struct.pack(">iii", 3, 0x40203, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    body += struct.pack(">ii", 16, len(lines))
    for line in lines:
        body += struct.pack(">ii", 0x40009, len(line.encode())) + line.encode()
    return body


def test_vectors_of_lines_become_books() -> None:
    objects = [serialized(["My Book", "", "It was a day."]), serialized(["Other: book", "é"])]
    data = b"".join(struct.pack(">i", len(each)) + zlib.compress(each) for each in objects)
    assert read("rdata", "Rdata.rdb", data) == {
        "my-book": "My Book\n\nIt was a day.\n",
        "other-book": "Other: book\né\n",
    }
    numbers = b"X\n" + struct.pack(">iii", 2, 0, 0) + struct.pack(">ii", 13, 0)
    with pytest.raises(FileError, match="something else than vectors of strings"):
        read("rdata", "Rdata.rdb", struct.pack(">i", len(numbers)) + zlib.compress(numbers))


def test_dictionaries_become_letters() -> None:
    entries = "Ant\n  An {insect}. See { hill}.\n\nBee\n  flies\n\nzebra crossing\n\nCat\n  purrs\n"
    text = f"00-database\nnotes\n\n(BEGIN)\nfirst\n\n{entries}"
    assert read("dictionary", "x.dict.dz", gzip.compress(text.encode()), begins="(BEGIN)\n", links=True) == {
        "a": "(BEGIN)\nfirst\n\nAnt\n  An insect. See hill.\n",
        "b": "Bee\n  flies\n\nzebra crossing\n",
        "c": "Cat\n  purrs\n",
    }


def test_plays_have_speakers_and_directions() -> None:
    play = "# Title\n\n## ACT I\n\n_Enter a Ghost_\n\n**GHOST**  \nBoo, I say;  \nboo. _Exit_\n"
    assert read("plays", "plays/sad/title-i.md", play) == {
        "title-i": "Title\n=====\n\nACT I\n\n[Enter a Ghost]\n\nGHOST:\nBoo, I say;\nboo. [Exit]\n"
    }


def test_code_goes_by_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "x = [" + ", ".join(map(str, range(900))) + "]\n"
    files = [
        Member("src/a/one.py", function("one").encode()), Member("src/a/two.py", function("two").encode()),
        Member("src/a/table.py", table.encode()), Member("src/a/latin.py", function("three").encode() + b"# \xe9\n"),
        Member("src/b/empty.py", b"\n"), Member("src/top.py", function("top").encode()),
    ]  # fmt: skip
    documents = READERS["code"](files, root="src/")
    assert [each.name for each in documents] == ["top", "a"]
    assert documents[1].text == f"# a/one.py\n\n{function('one')}\n\n# a/two.py\n\n{function('two')}"
    monkeypatch.setattr("ssmn.training.corpus.readers.code.LARGEST_FOLDER", 500)
    assert [each.name for each in READERS["code"](files, root="src/")] == ["top", "a/one.py", "a/two.py"]


def test_members_of_packages(tmp_path: Path) -> None:
    files = {"b/two.txt": "2", "a/one.gz": gzip.compress(b"1"), "a/skip.txt": "no", "c.bin": "no"}
    for name, data in (("x_1_all.deb", deb(files)), ("x-1-py3-none-any.whl", wheel(files))):
        (tmp_path / name).write_bytes(data)
        found = members(tmp_path / name, ("*.txt", "a/*"), ("*skip*",))
        assert found == [Member("a/one", b"1"), Member("b/two.txt", b"2")]
    for name in ("x_1_all.deb", "x-1-py3-none-any.whl"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(FileError, match=r"cannot be unpacked .*; delete it and run again"):
            members(tmp_path / name, ("*",))


def test_a_package_without_the_text_is_refused(sources: list[Source], tmp_path: Path) -> None:
    changed = [dataclasses.replace(sources[0], include=("books/*",))]
    with pytest.raises(FileError, match=r"holds no text for source 'plays'; its layout has changed.*--without plays"):
        build_corpus(tmp_path / "out", changed, config=SMALL, cache=tmp_path / "cache")


@pytest.mark.slow
def test_the_real_recipe_on_a_small_source(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ssmn.training.corpus", "--out", str(tmp_path), "--only", "shakespeare"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if "cannot be fetched" in done.stderr:
        pytest.skip(f"no network: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "licences.json").read_text())["sources"]
    assert record["is_pinned"]
    assert sum(record["bytes"].values()) > 4_500_000
    assert sum(record["documents"].values()) == 38
    text = "".join(path.read_text() for path in tmp_path.rglob("hamlet.txt"))
    assert "HAMLET:\nTo be, or not to be: that is the question:" in text
