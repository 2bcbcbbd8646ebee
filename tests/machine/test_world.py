"""Which process this is, from the environment."""

from __future__ import annotations

import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.machine.world import World, current_world


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_as_torchrun_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_world() == World(0, 1, 0) and current_world().is_main
    for name, value in {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert current_world() == World(9, 16, 1) and not current_world().is_main


@pytest.mark.parametrize(
    ("variables", "words"),
    (
        ({"RANK": "first"}, "RANK is 'first'; expected a whole number"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "1"}, "more than 18 digits"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, LOCAL_RANK 2 and WORLD_SIZE 2"),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "LOCAL_RANK 3"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
    ),
)
def test_contradictions_are_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FlasharError) as error:
        current_world()
    assert words in str(error.value) and len(str(error.value)) < 300
