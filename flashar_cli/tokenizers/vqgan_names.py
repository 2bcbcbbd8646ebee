"""Names of encoders and decoders in files of taming-transformers' layout, which Emu3.5, VAR and Infinity have, and how
a state dict is brought under ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from flashar_cli.files.lazy import Lazy
from flashar_cli.tokenizers.shapes import StateShapes

MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
RESOLUTIONS = {"encoder": "down", "decoder": "up"}


def upstream_names(ours: Iterable[str]) -> dict[str, str]:
    """Upstream's name of each of ours; others are as they are. Upstream counts a decoder's levels from the image's own
    resolution down, we in the order in which they are computed.
    """
    names = list(ours)
    lowest = max(int(match[1]) for name in names if (match := re.match(r"decoder\.conv_blocks\.(\d+)\.", name)))

    def level(match: re.Match[str]) -> str:
        number = int(match[2]) if match[1] == "encoder" else lowest - int(match[2])
        return f"{match[1]}.{RESOLUTIONS[match[1]]}.{number}."

    def upstream(name: str) -> str:
        name = re.sub(r"(?<=coder\.mid\.)\d", lambda match: MIDDLE[match[0]], name)
        name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.", level, name)
        return name.replace(".res.", ".block.")

    return {name: upstream(name) for name in names}


def renamed(shapes: StateShapes, state: Mapping[str, Lazy], names: Mapping[str, str]) -> dict[str, Lazy]:
    """The tensors under our names; ``names`` are upstream's of ours. Raises FlasharError that lists missing and
    unexpected tensors.
    """
    expected = set(names.values())
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    if problems:
        raise shapes.foreign(*sorted(problems))
    return {ours: state[theirs] for ours, theirs in names.items()}
