"""`ssmn chat`: turn by turn, from one state."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmn.cli import options
from ssmn.config import Plasticity
from ssmn.errors import FileError, RangeError, SSMNError
from ssmn.files import shipped_model

if TYPE_CHECKING:
    from ssmn.files import Origin
    from ssmn.generation import Conversation
    from ssmn.models import TextSSMN

_SHORT = {"eta": "plasticity_eta", "decay": "decay_lambda", "threshold": "write_threshold"}
"""What `/plasticity` calls some fields of `Plasticity`."""


def command(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Folder of a trained model; the shipped one if absent.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", "-s", metavar="FILE", help="Go on from this state if the file exists; saved after every turn."
        ),
    ] = None,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Read before what you say.")] = None,
    suffix: Annotated[str | None, typer.Option(metavar="TEXT", help="Read after it, before the answer.")] = None,
    ending: Annotated[str | None, typer.Option(metavar="TEXT", help="Read after the answer.")] = None,
    stop: options.Stop = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = None,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = 1.1,
    seed: options.Seed = None,
    preset: options.Preset = None,
    frozen: options.Frozen = False,
    eta: options.Eta = None,
    eta_scale: options.EtaScale = 1.0,
    decay: options.Decay = None,
    decay_scale: options.DecayScale = 1.0,
    write_threshold: options.WriteThreshold = None,
    output_memory: options.OutputMemory = False,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
) -> None:
    """Talk to a model that remembers: the state goes on from turn to turn, and from day to day.

    A folder with a chat template is used with it. Without one the model goes on from what you say: your
    line, its continuation up to an empty line; --prefix, --suffix, --ending and --stop change that.
    Ctrl-C stops an answer; the turn then ends where it was stopped. /help names the commands.

    \b
    Example:
        ssmn chat
        ssmn chat runs/book --state monday.safetensors
        printf 'The first line\\n/state\\n' | ssmn chat runs/book --seed 0
    """
    options.use_threads(threads)
    settings = options.plasticity(preset, frozen, eta, eta_scale, decay, decay_scale, write_threshold)
    lm, tokenizer = options.load_text(model, output_memory)

    from ssmn.generation import Conversation, Sampling, Turns

    given = {"prefix": prefix, "suffix": suffix, "ending": ending}
    changed: dict[str, Any] = {name: options.unescaped(text) for name, text in given.items() if text is not None}
    turns = (None if changed else Turns.of_folder(model or shipped_model())) or Turns()
    if stop is not None:
        changed["stop"] = tuple(map(options.unescaped, stop))
    conversation = Conversation(
        lm,
        tokenizer,
        turns=dataclasses.replace(turns, **changed),
        sampling=Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        ),
        max_new_tokens=max_new_tokens,
        seed=seed,
        plasticity=settings,
        backend=backend,
    )
    Chat(lm, conversation, state).run()


class Chat:
    """The loop around a conversation: lines in, answers out, a state file kept up to date.

    Args:
        lm: The model, whose states the files hold.
        conversation: Over it.
        file: The state file to go on from, and to write after every turn.
    """

    def __init__(self, lm: TextSSMN, conversation: Conversation, file: Path | None) -> None:
        from rich.console import Console

        from ssmn.state import origin_of

        self.lm, self.conversation, self.file = lm, conversation, file
        self._origin: Origin = origin_of(lm)
        self._is_live = bool(getattr(sys.stdin, "isatty", bool)())
        self._out = Console(highlight=False, markup=False, soft_wrap=True)
        self._commands: dict[str, tuple[Callable[[list[str]], bool | None], str, str]] = {
            "undo": (self._undo, "", "take the last turn back"),
            "fork": (self._fork, "NAME", "go on in a new state file; the old one stays as it is"),
            "load": (self._load, "FILE", "go on from a state file, which is kept up to date from now on"),
            "save": (self._save, "FILE", "write a copy of the state"),
            "read": (self._read, "FILE", "read a text file without an answer"),
            "state": (self._state, "", "where the stream stands, and how large its state is"),
            "plasticity": (
                self._plasticity,
                "[long-term | short-term | trained | frozen | eta=0.1 decay=0.001 threshold=0.2 ...]",
                "show or set how the memory learns",
            ),
            "help": (self._help, "", "this list"),
            "quit": (self._quit, "", "leave (end of file and Ctrl-C do too)"),
        }
        if file is not None and file.exists():
            conversation.state = self._loaded(file)

    def run(self) -> None:
        """Until the input ends, `/quit`, or Ctrl-C between answers."""
        if self._is_live:
            name = self.file if self.file is not None else "nowhere (--state FILE keeps it)"
            self._say(f"position {self.conversation.position:,}; kept in {name}; /help for commands", style="dim")
        for line in self._lines():
            try:
                if line.startswith("/") and not line.startswith("//"):
                    if self._obey(line[1:]):
                        return
                elif line:
                    self._turn(line.removeprefix("/") if line.startswith("//") else line)
            except (SSMNError, OSError) as error:
                self._out.file.flush()
                print(f"ssmn: {error}", file=sys.stderr, flush=True)

    def _lines(self) -> Iterator[str]:
        """What is typed, or the lines of a pipe."""
        if not self._is_live:
            for raw in sys.stdin.buffer:
                yield raw.decode("utf-8", "replace").rstrip("\r\n")
            return
        import readline  # noqa: F401  (input() edits lines and recalls them once it is loaded)

        while True:
            try:
                yield input("> ")
            except EOFError:
                self._say("")
                return

    def _turn(self, text: str) -> None:
        """One turn; Ctrl-C ends its answer."""
        answer = self.conversation.say(text)
        with _interrupts() as is_asked:
            for piece in answer:
                self._say(piece if not self._is_live else _printable(piece), end="")
                if is_asked():
                    break
            answer.close()
        self._say("")
        self._keep()

    def _keep(self) -> None:
        if self.file is not None:
            self._write(self.file)

    def _write(self, file: Path) -> None:
        from ssmn.state import write_state_file

        write_state_file(file, self._present(), self._origin)

    def _present(self) -> Any:
        state = self.conversation.state
        return self.lm.init_state(1) if state is None else state

    def _loaded(self, file: Path) -> Any:
        return options.open_stream(self.lm, file).state

    def _say(self, text: str, end: str = "\n", style: str | None = None) -> None:
        self._out.print(text, end=end, style=style)
        self._out.file.flush()

    def _obey(self, line: str) -> bool | None:
        """Does what a line after the slash says; True = leave."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise RangeError(f"/{line}: {error}.") from None
        if not words or words[0] not in self._commands:
            raise RangeError(f"/{line}: there is no such command; /help lists them (// begins a text with a slash).")
        function, wanted, _ = self._commands[words[0]]
        if len(words) - 1 != (1 if wanted and not wanted.startswith("[") else 0) and not wanted.startswith("["):
            raise RangeError(f"/{words[0]}: {len(words) - 1} words follow; wanted {wanted or 'none'}.")
        return function(words[1:])

    def _undo(self, words: list[str]) -> None:
        if not self.conversation.undo():
            raise RangeError("/undo: there is no turn to take back.")
        self._keep()
        self._say(f"back at position {self.conversation.position:,}")

    def _fork(self, words: list[str]) -> None:
        file = _new_file("/fork", words[0])
        self._write(file)
        self.file = file
        self._say(f"going on in {file}")

    def _load(self, words: list[str]) -> None:
        file = Path(words[0])
        if not file.exists():
            raise FileError(f"/load: {file} does not exist.")
        self.conversation.state, self.file = self._loaded(file), file
        self._say(f"at position {self.conversation.position:,}; kept in {file}")

    def _save(self, words: list[str]) -> None:
        file = _new_file("/save", words[0])
        self._write(file)
        self._say(f"saved in {file}")

    def _read(self, words: list[str]) -> None:
        try:
            text = Path(words[0]).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FileError(f"/read: {words[0]}: byte {error.start} is not UTF-8; wanted a text.") from error
        if not text:
            raise FileError(f"/read: {words[0]} is empty.")
        count = self.conversation.read(text)
        self._keep()
        self._say(f"read {count:,} tokens; at position {self.conversation.position:,}")

    def _state(self, words: list[str]) -> None:
        kept = "" if self.file is None else f", kept in {self.file}"
        self._say(f"position {self.conversation.position:,}, {self._present().nbytes:,} bytes{kept}")

    def _plasticity(self, words: list[str]) -> None:
        if words:
            self.conversation.plasticity = _plasticity_of(words)
        settings = self.conversation.plasticity or Plasticity()
        shown = [f"{field.name}={getattr(settings, field.name)}" for field in dataclasses.fields(settings)
                 if getattr(settings, field.name) != field.default]  # fmt: skip
        self._say(" ".join(shown) or "as trained")

    def _help(self, words: list[str]) -> None:
        for name, (_, wanted, what) in self._commands.items():
            self._say(f"/{name} {wanted}".rstrip() + f"   {what}")

    def _quit(self, words: list[str]) -> bool:
        return True


def _plasticity_of(words: list[str]) -> Plasticity | None:
    """The setting that the words after `/plasticity` ask for, from as trained on."""
    values: dict[str, Any] = {}
    for word in words:
        name, is_value, value = word.partition("=")
        field = _SHORT.get(name, name)
        if not is_value and name in options.PRESETS:
            values |= dataclasses.asdict(options.PRESETS[name])
        elif not is_value and name == "frozen":
            values["frozen"] = True
        elif not is_value and name == "trained":
            values.clear()
        elif is_value and field in {one.name for one in dataclasses.fields(Plasticity)} - {"frozen"}:
            try:
                values[field] = float(value)
            except ValueError:
                raise RangeError(f"/plasticity: {word}; wanted a number after {name}=.") from None
        else:
            raise RangeError(
                f"/plasticity: {word!r}; wanted long-term, short-term, trained, frozen, or eta=, decay=, threshold=, "
                "eta_scale=, decay_scale= with a number."
            )
    return Plasticity(**values) if values else None


def _new_file(verb: str, name: str) -> Path:
    file = Path(name if name.endswith(".safetensors") else f"{name}.safetensors")
    if file.exists():
        raise FileError(f"{verb}: {file} exists; choose another name.")
    return file


def _printable(text: str) -> str:
    """The text without what a terminal would take as a command."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a question that can be asked: has there been one? The second is as ever.

    An exception could strike between reading a token and showing it; a question cannot.
    """
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
