"""What the documents say can be typed, run and found."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from ssmn.cli import VERBS, app_for, main
from ssmn.files import shipped_model
from ssmn.models import load_model
from ssmn.training import TrainConfig, settings_for, shipped_configs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/LOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
TOUR = ROOT / "docs" / "tour.md"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def typed(page: Path) -> Iterator[str]:
    """The shell lines of a page: all of `sh` blocks, those after a prompt of `console` blocks."""
    for body in blocks(page, "sh"):
        yield from (line for line in body.splitlines() if line and not line.startswith("#"))
    for body in blocks(page, "console"):
        yield from (line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ "))


def mentioned(page: Path) -> Iterator[str]:
    """The code spans of a page."""
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))


def calls(line: str, program: str) -> Iterator[list[str]]:
    """The words after `program` wherever a shell line calls it; redirections are left out."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|<>&;")
    words.whitespace_split, words.commenters = True, ""
    call: list[str] | None = None
    is_first, is_file = True, False
    for word in words:
        if set(word) <= set("|&;"):
            if call is not None:
                yield call
            call, is_first = None, True
        elif set(word) <= set("<>"):
            is_file = True
        elif is_file:
            is_file = False
        elif is_first:
            call, is_first = ([] if word == program else None), False
        elif call is not None:
            call.append(word)
    if call is not None:
        yield call


def parse(words: list[str]) -> dict[str, Any]:
    """What the command line would make of the words; raises what it would raise."""
    command: Any = typer.main.get_command(app_for(words[0] if words else None))
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return {} if hasattr(command, "commands") else command.make_context("ssmn", list(words)).params


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ssmn stream < notes.txt", [["stream"]]),
        ("tail -f app.log | ssmn stream --jsonl", [["stream", "--jsonl"]]),
        ('echo "ssmn state" > ssmn; ssmn generate "a b" | head', [["generate", "a b"]]),
        ("make demo", []),
    ],
)
def test_calls_are_seen(line: str, found: list[list[str]]) -> None:
    assert list(calls(line, "ssmn")) == found


@pytest.mark.parametrize(
    "words", [["sing"], ["stream", "--jsonn"], ["state", "tear", "file"], ["bench", "soak", "--n", "1"]]
)
def test_wrong_calls_are_seen(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no |such"):
        parse(words)


@pages
def test_commands_exist(page: Path) -> None:
    for line in typed(page):
        for words in calls(line, "ssmn"):
            settings = parse(words)
            if words[0] == "train" and not settings["resume"]:
                check_settings(settings)
            if words[0] == "eval" and settings["config"] is not None:
                check_settings({**settings, "text": None, "series": None})
    for span in mentioned(page):
        for words in calls(span, "ssmn") if re.match(r"ssmn( |$)", span) else ():
            assert not words or words[0] in VERBS or words[0].startswith("-"), f"there is no {span!r}"
            try:
                parse(words)
            except Exception as error:
                # A mention may leave out what a call needs.
                if type(error).__name__ != "MissingParameter":
                    raise


def check_settings(options: dict[str, Any]) -> None:
    if options["config"] in (None, *shipped_configs()):
        named = {name: options[name] for name in ("text", "series", "task")}
        TrainConfig.from_dict(settings_for(options["config"], **named, overrides=options["overrides"] or []))


@pages
def test_names_exist(page: Path) -> None:
    for span in mentioned(page):
        if name := re.match(r"@?(ssmn(?:\.\w+)+)", span):
            assert pkgutil.resolve_name(name[1]) is not None


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", read(ROOT / "Makefile"), re.MULTILINE))
    for line in [*typed(page), *mentioned(page)]:
        for words in calls(line, "make"):
            wanted = {word for word in words if "=" not in word}
            assert wanted <= targets, f"{line!r}: there is no {wanted - targets}"


@pages
def test_extras_exist(page: Path) -> None:
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    for names in re.findall(r"(?:sparse-stream|[\"' ]\.)\[([\w,-]+)\]", read(page)):
        assert set(names.split(",")) <= extras.keys()


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} leads nowhere"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", read(file), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{target}: there is no such heading"


@pages
def test_nothing_is_unfinished_or_of_one_machine(page: Path) -> None:
    text = read(page)
    assert not re.search(r"\b(TODO|FIXME|XXX|TBD)\b|@@", text)
    rooted = re.findall(r"(?<![\w.:/>~)\]])/[a-z]+/[^\s`)]*", text)
    assert not rooted, f"paths of one machine: {rooted}"


def test_readme_examples_print_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = blocks(ROOT / "README.md", "python")
    printed, _ = blocks(ROOT / "README.md", "")
    monkeypatch.chdir(tmp_path)
    for program, longest, wanted in ((first, 11, printed), (second, 20, "identical (15 tensors)\n")):
        assert sum(1 for line in program.splitlines() if line) <= longest
        exec(compile(program, "README.md", "exec"), {})
        assert capsys.readouterr().out == wanted


def test_streaming_manual_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.enable_grad():
        for number, program in enumerate(blocks(ROOT / "docs" / "streaming.md", "python"), start=1):
            exec(compile(program, f"docs/streaming.md, block {number}", "exec"), names)
    assert names["loss"].isfinite()


def test_online_learning_manual_runs() -> None:
    names: dict[str, Any] = {}
    try:
        for number, program in enumerate(blocks(ROOT / "docs" / "online-learning.md", "python"), start=1):
            exec(compile(program, f"docs/online-learning.md, block {number}", "exec"), names)
    finally:
        torch.set_grad_enabled(True)


def test_control_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("gymnasium", "torchrl", "sb3_contrib"):
        pytest.importorskip(library, reason='the extra "rl" is not installed')
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.enable_grad():
        for number, program in enumerate(blocks(ROOT / "docs" / "control.md", "python"), start=1):
            exec(compile(program, f"docs/control.md, block {number}", "exec"), names)
    assert names["actions"].shape == (1,)


def test_hugging_face_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason='the extra "hf" is not installed')
    from importlib.util import find_spec

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, program in enumerate(blocks(ROOT / "docs" / "usage" / "hugging-face.md", "python"), start=1):
        if "lm_eval" not in program or find_spec("lm_eval"):
            exec(compile(program, f"docs/usage/hugging-face.md, block {number}", "exec"), names)
    assert names["trainer"].state.global_step == 3


def test_engine_manual_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, program in enumerate(blocks(ROOT / "docs" / "engine.md", "python"), start=1):
        exec(compile(program, f"docs/engine.md, block {number}", "exec"), names)
    assert names["engine"].streams == 4


def test_time_series_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    page = ROOT / "docs" / "timeseries.md"
    for number, program in enumerate(blocks(page, "python"), start=1):
        exec(compile(program, f"docs/timeseries.md, block {number}", "exec"), names)
    assert names["table"].gaps() == [] and names["table"].season == 24
    assert names["frozen"].windows == len(names["new"]) - 23
    for words in (words for line in typed(page) for words in calls(line, "ssmn")):
        assert main([*words, *(["--steps", "0"] if "--update" not in words else [])]) == 0
    assert (tmp_path / "next.csv").exists() and (tmp_path / "forecast.png").exists()


def test_probes_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.enable_grad():
        for number, program in enumerate(blocks(ROOT / "docs" / "probes.md", "python"), start=1):
            exec(compile(program, f"docs/probes.md, block {number}", "exec"), names)
    assert names["told"].positions.shape == (500, 1, 3)
    assert len((tmp_path / "engine.jsonl").read_text().splitlines()) == 2


USAGE = {
    "adapt": ("range(6)", "range(1)"),
    "batch": None,
    "chat": None,
    "inspect": ("2_000", "200"),
    "river": ("ROWS = 1_000", "ROWS = 300"),
    "scikit-learn": None,
    "sktime": None,
    "train": ("train.steps=300", "train.steps=2"),
    "watch": None,
}
"""The pages on tasks whose Python stands alone, and what makes them quick."""

LIBRARIES = {"river": ["river"], "scikit-learn": ["sklearn"], "sktime": ["sktime"]}
"""The pages on another library's interface, and what they need."""


def quick(name: str, code: str) -> str:
    """The code of a page as the tests run it."""
    change = USAGE[name]
    return code if change is None else code.replace(*change)


def test_every_usage_page_is_run() -> None:
    assert {page.stem for page in (ROOT / "docs" / "usage").glob("*.md")} == {*USAGE, "hugging-face"}


@pytest.mark.parametrize("name", USAGE)
def test_usage_pages_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydoc_data.topics import topics

    for module in LIBRARIES.get(name, ()):
        pytest.importorskip(module, reason='the extra "timeseries" is not installed')
    monkeypatch.chdir(tmp_path)
    (tmp_path / "topics.txt").write_text("\n\n".join(topics.values())[:60_000], encoding="utf-8")
    names: dict[str, Any] = {}
    page = ROOT / "docs" / "usage" / f"{name}.md"
    with torch.enable_grad():
        for number, program in enumerate(blocks(page, "python"), start=1):
            exec(compile(quick(name, program), f"docs/usage/{name}.md, block {number}", "exec"), names)
    assert name in LIBRARIES or names["tokenizer"].vocab_size > 1000


def test_commands_of_the_inspect_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydoc_data.topics import topics

    monkeypatch.chdir(tmp_path)
    (tmp_path / "sequences.txt").write_text(topics["typesseq"], encoding="utf-8")
    model = load_model(shipped_model())
    model.init_state(1).save("sequences.safetensors", model)
    for words in (words for line in typed(ROOT / "docs" / "usage" / "inspect.md") for words in calls(line, "ssmn")):
        assert main([*words, *(["--limit", "150"] if "--text" in words else [])]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} >= {".html"} and len(list(Path("drawn").iterdir())) == 5


@pytest.mark.slow
def test_commands_of_the_usage_pages_run(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A list\nA set\n")
    (tmp_path / "questions.txt").write_text("A list\n/state\n")
    lines = [line for name in ("train", "batch") for line in typed(ROOT / "docs" / "usage" / f"{name}.md")]
    lines += ["ssmn chat --seed 0 -n 5 < questions.txt", "ssmn chat runs/topics --prefix 'Q: ' < questions.txt"]
    script = "set -eu\n" + quick("train", "\n".join(lines))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2
    assert run.stdout.count("position ") == 2


@pytest.mark.slow
def test_tour_runs(tmp_path: Path) -> None:
    script = ["set -eu"]
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", read(TOUR), re.DOTALL | re.MULTILINE):
        if language == "console":
            script += [line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ ")]
        if language == "python":
            script += ["python - <<'END'", body + "END"]
    quick = "\n".join(script).replace("train.steps=300", "train.steps=2")
    assert "train.steps=2\n" in quick
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.run(
        ["bash", "-c", quick], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "identical" not in run.stdout and "both.safetensors: 2 rows" in run.stdout
    assert run.stdout.rstrip().splitlines()[-1].startswith("monday iron")
