"""Usage errors, exit codes and interruption."""

from __future__ import annotations

import pytest

import flashar_cli
from flashar_cli.cli.main import COMMANDS


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("generat",), "No such command 'generat'"),
        (("generate", "--bogus"), "see `flashar generate --help`"),
        (("generate", "llamagen-tiny", "--num-images", "many"), "--num-images"),
        (("generate", "llamagen-tiny", "--decoder", "spiral"), "--decoder"),
        (("convert", "weights.pt"), "--out"),
        (("bench", "--repeats", "0"), "--repeats"),
    ),
)
def test_usage_errors_are_one_line(run_cli, arguments, words):
    result = run_cli(*arguments)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err


def test_version_and_help(run_cli):
    version = run_cli("--version")
    assert (version.code, version.out) == (0, flashar_cli.__version__ + "\n")
    text = run_cli("--help").out
    assert all(command in text for command in COMMANDS)
    assert run_cli().code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_examples(run_cli, command):
    result = run_cli(command, "--help")
    assert result.code == 0 and f"flashar {command}" in result.out


def test_ctrl_c_exits_130(run_cli, monkeypatch, write_tiny_checkpoint, tmp_path):
    from flashar_cli.decoding.engine import Engine

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "decode", interrupted)
    result = run_cli("generate", write_tiny_checkpoint(), "--out", tmp_path / "out")
    assert result.code == 130 and "interrupted" in result.err and not (tmp_path / "out").exists()
