"""Every `flashar` command that the documentation shows can be typed as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from flashar_cli.cli.main import COMMANDS, app
from flashar_cli.config.recipe import recipes_dir

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docs" / "methods.md",
    *sorted(recipes_dir().glob("*.toml")),
)


def shown_commands() -> list[str]:
    found = []
    for document in DOCUMENTS:
        for line in document.read_text().splitlines():
            match = re.match(r"^(?:# command +|\(--|)\s*(flashar [a-z]+.*?)(?:  +#.*)?$", line)
            if match:
                found.append(match[1])
    return found


@pytest.mark.parametrize("line", shown_commands())
def test_shown_commands_parse(line):
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app).commands[words[0]]
    command.make_context(words[0], words[1:])


@pytest.mark.parametrize(
    "document", (*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_tables_end_with_an_empty_line(document):
    """Without one the next paragraph becomes rows of the table."""
    lines = document.read_text().splitlines()
    pairs = zip(lines, [*lines[1:], ""], strict=True)
    assert [next_line for line, next_line in pairs if line.startswith("|") and next_line[:1] not in ("", "|")] == []


def test_the_readme_shows_every_command():
    shown = {line.split()[1] for line in shown_commands()}
    assert shown >= set(COMMANDS)
