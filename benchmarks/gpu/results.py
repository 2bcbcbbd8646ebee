"""results.json: the outcome of each case by its name; rewritten as a whole at each change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashar_cli.errors import FlasharError
from flashar_cli.files.writing import atomic_file

FILE, RUNNING_FILE = "results.json", "running.json"
RUNNING, STOPPED, SKIPPED, FAILED, OK = "running", "stopped", "skipped", "failed", "ok"

Entry = dict[str, Any]


class Results:
    """The entries of a folder, those of earlier calls before them."""

    def __init__(self, folder: Path, earlier: Sequence[Path] = ()) -> None:
        self.path = folder / FILE
        self.running = folder / RUNNING_FILE
        self.entries: dict[str, Entry] = {}
        for path in [*earlier, *([self.path] if self.path.exists() else [])]:
            self.entries = merged(self.entries, read_entries(path))

    def put(self, name: str, entry: Entry) -> None:
        """Puts an entry in, in the place of the one of that name: behind all others."""
        self.entries.pop(name, None)
        self.entries[name] = entry
        with atomic_file(self.path) as file:
            file.write((json.dumps({"results_version": 2, "entries": self.entries}, indent=1) + "\n").encode())


def merged(entries: Mapping[str, Entry], later: Mapping[str, Entry]) -> dict[str, Entry]:
    """Both; later entries replace those of the same names, but a skipped case replaces nothing."""
    taken = {name: entry for name, entry in later.items() if entry["status"] != SKIPPED or name not in entries}
    return {**entries, **taken}


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries of a results.json. One marked as running was cut off with its call and counts as stopped, with
    what it had reported. Raises FlasharError for another file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        if not all(isinstance(entry["status"], str) for entry in entries.values()):
            raise TypeError("a status is no text")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise FlasharError(f"{path} could not be read as the {FILE} of this suite: {error!r}") from None
    return {name: _cut_off(entry, path) if entry["status"] == RUNNING else entry for name, entry in entries.items()}


def read_json(path: Path) -> Any:
    """What a case reported, or None where it reported nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None


def _cut_off(entry: Entry, path: Path) -> Entry:
    return {**entry, "status": STOPPED, "why": "cut off with its call", "report": read_json(path.parent / RUNNING_FILE)}
