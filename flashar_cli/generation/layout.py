"""Where the images lie in a folder of samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flashar_cli.generation.prompts import read_prompt_objects

FLAT_IMAGE = r"\d{5,}\.png"
GENEVAL_FOLDER = r"\d{5,}/(samples/)?"
GENEVAL_IMAGE = r"\d{5,}/samples/\d{4,}\.png"
GENEVAL_METADATA = r"\d{5,}/metadata\.jsonl"


@dataclass(frozen=True)
class Layout:
    """One file beside the other: ``00000.png`` .."""

    def name(self, index: int, num_images: int) -> str:
        """The file of an image, relative to the folder."""
        return f"{index:0{max(5, len(str(num_images - 1)))}d}.png"

    def documents(self) -> dict[str, bytes]:
        """What else the folder holds, by names."""
        return {}

    def identity(self) -> str:
        """The same for layouts that hold the same documents, and images in the same places."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass(frozen=True)
class GenEval(Layout):
    """As GenEval's evaluation reads it: ``00000/metadata.jsonl``, one of the ``lines``, with its ``samples`` images
    ``00000/samples/0000.png`` ..

    Source: djghosh13/geneval evaluation/evaluate_images.py.
    """

    lines: tuple[str, ...]
    prompts: tuple[str, ...]
    samples: int

    @classmethod
    def read(cls, path: Path, samples: int) -> GenEval:
        """Of a file of metadata, a JSON object with a ``prompt`` on each line. Raises FlasharError for another."""
        lines, prompts = zip(*read_prompt_objects(path, f"--geneval {path}"), strict=True)
        return cls(lines, prompts, samples)

    def name(self, index: int, num_images: int) -> str:
        row, sample = divmod(index, self.samples)
        return f"{row:05d}/samples/{sample:04d}.png"

    def documents(self) -> dict[str, bytes]:
        return {f"{row:05d}/metadata.jsonl": f"{line}\n".encode() for row, line in enumerate(self.lines)}
