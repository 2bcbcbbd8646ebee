"""Files of prompts. No torch here."""

from __future__ import annotations

from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import decode_text, parse_json, read_lines

MOST_PROMPTS = 2**20  # of one run, repetitions included


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line, or of a ``.jsonl`` file, the ``prompt`` of each line's object. Blank
    lines are skipped. Raises FlasharError for other content, and for a file without prompts.
    """
    where = f"--prompts-file {path}"
    if path.suffix == ".jsonl":
        return [prompt for _, prompt in read_prompt_objects(path, where)]
    return [line for _, line in _lines(path, where)]


def read_prompt_objects(path: Path, where: str) -> list[tuple[str, str]]:
    """The lines of a file of JSON objects, and the ``prompt`` of each. Raises FlasharError as ``read_prompts``."""
    found = []
    for number, line in _lines(path, where):
        place = f"line {number} of {where}"
        document = parse_json(line, place)
        prompt = document.get("prompt") if isinstance(document, dict) else None
        if not isinstance(prompt, str):
            raise FlasharError(f'{place} has no prompt; expected a JSON object such as {{"prompt": "a red star"}}')
        found.append((line, prompt))
    return found


def repeated(prompts: list[str], times: int) -> list[str]:
    """Each prompt so many times, one after the other. Raises FlasharError for more than a run may have."""
    if len(prompts) * times > MOST_PROMPTS:
        raise FlasharError(
            f"{times} images of {len(prompts)} prompts are more than {MOST_PROMPTS}; pass fewer at a time"
        )
    return [prompt for prompt in prompts for _ in range(times)]


def _lines(path: Path, where: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1 on, without white space around them."""
    found = []
    for number, content in read_lines(path, where):
        if line := decode_text(content, f"line {number} of {where}").strip():
            found.append((number, line))
        if len(found) > MOST_PROMPTS:
            raise FlasharError(f"{where} has more than {MOST_PROMPTS} prompts; pass fewer at a time")
    if not found:
        raise FlasharError(f"{where} has no prompts; expected one a line")
    return found
