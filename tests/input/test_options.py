"""Every option of every command, found in the command line itself, under values that nobody means."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from typer.main import get_command
from typer.models import OptionInfo

from flashar_cli.checkpoints import checkpoint
from flashar_cli.cli.main import COMMANDS, app, main
from flashar_cli.config.recipe import AdaptRecipe
from flashar_cli.inputs.text import MOST_CHARACTERS, printable
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.benchmarking.reports import made_up
from tests.input.values import ARGUMENTS, DIGITS
from tests.parity.upstream_files import upstream_state
from tests.tiny_models import build_model, random_config

# What each command needs to do something small. A new command needs a line here.
VALID = {
    "ls": (),
    "inspect": ("{model}",),
    "convert": ("{upstream}", "--out", "out", "--num-heads", "4", "--grid", "3x5"),
    "encode": ("{base}", "--data", "shapes:3", "--out", "out", "--dry-run"),
    "probe": ("{base}", "--data", "shapes:8", "--num-images", "4", "--out", "out", "--dry-run"),
    "adapt": ("{base}", "--data", "shapes:8", "--out", "out", "--dry-run"),
    "generate": ("{model}", "--labels", "0", "--tokens-out", "tokens.npy"),
    "eval": ("{base}", "--data", "shapes:8", "--num-validation", "4", "--out", "out"),
    "bench": ("{model}", "--random-weights", "--repeats", "1", "--device", "cpu"),
    "compare": ("{report}", "{report}"),
}
MOST_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """Where commands run, and the files that they may read."""

    folder: Path
    files: dict[str, Path]

    def arguments(self, command: str) -> list[str]:
        return [command, *(part.format(**self.files) for part in VALID[command])]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str
    seconds: float
    files: list[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hostile")
    files = {name: folder / name for name in ("model", "base", "upstream", "report")}
    for name in ("model", "base"):
        config = random_config(branch=name == "model")
        assert config.tokenizer is not None
        tokenizer = VQTokenizer(config.tokenizer).state_dict()
        checkpoint.save(files[name], config, build_model(config).state_dict(), tokenizer)
    torch.save(upstream_state(), files["upstream"])
    files["report"].write_text(json.dumps(made_up.report()), encoding="utf-8")
    (folder / "here").mkdir()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        # As one of several processes would see it, so that --nproc starts none.
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "FLASHAR_HOME": str(folder / "home")}.items():
            patch.setenv(name, value)
        patch.setenv("FLASHAR_TRACEBACK", "1")
        patch.setattr("flashar_cli.cli.main.app", get_command(app))  # made once rather than at every call
        patch.setattr("flashar_cli.machine.network.answers", lambda address: False)
        patch.setattr("flashar_cli.machine.rates.measure_rates", _rates)
        patch.chdir(folder / "here")
        yield Place(folder / "here", files)
        torch.set_num_threads(threads)


def _rates(*_: object) -> Any:
    from flashar_cli.machine.rates import Rates

    return Rates(copy_bytes_per_s=1e10, matmul_flops_per_s=1e11)


def run(place: Place, arguments: list[str]) -> Done:
    """The exit code and what was printed, on a terminal that knows nothing but ASCII; new files are removed."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    begun = time.process_time()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        patch.setattr(sys, "argv", ["flashar", *arguments])
        try:
            main()
        except SystemExit as error:
            code = error.code
    seconds = time.process_time() - begun
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode("ascii") for stream in streams)  # type: ignore[attr-defined]
    files = sorted(os.listdir(place.folder))
    for name in files:
        path = place.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert isinstance(code, int)
    return Done(code, out, err, seconds, files)


def check(done: Done) -> None:
    """It worked, or one line says why not and nothing is left."""
    assert done.code in (0, 2), done
    assert printable(done.err) == done.err and printable(done.out) == done.out
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (done.code == 2), done
    if errors:
        assert done.err.splitlines()[-1] == errors[0] and len(errors[0]) <= MOST_CHARACTERS
        assert not done.files, done
    assert done.seconds < MOST_SECONDS, done


@dataclass(frozen=True)
class Parameter:
    """An option (its name) or an argument (its index) of a command, the type of its values, how it is declared."""

    command: str
    place: str | int
    kind: Any
    declared: Any


def parameters() -> list[Any]:
    """Everything that takes a value, of every command."""
    found = []
    for command in COMMANDS:
        function = import_module(f"flashar_cli.cli.{command}").command
        num_arguments = 0
        for name, hint in get_type_hints(function, include_extras=True).items():
            kinds, declared = get_args(hint)[:1], get_args(hint)[1:]
            if not declared or kinds == (bool,):  # what is returned; flags
                continue
            option = isinstance(declared[0], OptionInfo)
            # Typer keeps the first name of an option in an Annotated type where its default would be.
            where: str | int = declared[0].default if option else (num_arguments := num_arguments + 1)
            kind = next((part for part in get_args(kinds[0]) if part is not type(None)), kinds[0])
            found.append(pytest.param(Parameter(command, where, kind, declared[0]), id=f"{command}-{name}"))
    return found


def with_value(place: Place, parameter: Parameter, value: str) -> list[str]:
    arguments = place.arguments(parameter.command)
    if isinstance(parameter.place, int):
        return [*arguments[: parameter.place], value, *arguments[parameter.place + 1 :]]
    return [*arguments, parameter.place, value]


def try_values(place: Place, parameter: Parameter, num_examples: int) -> None:
    values = ARGUMENTS
    if parameter.place == "--set":
        values = st.builds("{}={}".format, st.sampled_from(list(keys(AdaptRecipe))), ARGUMENTS) | ARGUMENTS

    @seed(crc32(f"{parameter.command} {parameter.place}".encode()))
    @settings(max_examples=num_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(values)
    def hostile(value: str) -> None:
        check(run(place, with_value(place, parameter, value)))

    if parameter.kind in (int, float):
        hostile = example(DIGITS)(example("nan")(hostile))
    hostile()


def keys(kind: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every key of a recipe, with dots."""
    for name, field in kind.model_fields.items():
        yield above + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{above}{name}.")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_each_command_needs_is_known(place: Place, command: str) -> None:
    done = run(place, place.arguments(command))
    assert done.code == 0, done


@pytest.mark.parametrize("parameter", parameters())
def test_hostile_values(place: Place, parameter: Parameter) -> None:
    try_values(place, parameter, 6 if parameter.kind in (int, float) else 2)


@pytest.mark.slow
@pytest.mark.parametrize("parameter", parameters())
def test_many_hostile_values(place: Place, parameter: Parameter) -> None:
    try_values(place, parameter, 100)


@pytest.mark.parametrize("parameter", parameters())
def test_every_number_has_bounds(parameter: Parameter) -> None:
    """A number that would be taken whatever its size is refused by nobody else in time."""
    if parameter.kind in (int, float):
        assert parameter.declared.callback is not None, "declare it with options.number"
