"""Reading upstream files as plain tensors, and telling their family."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.families.base import Family
from flashar_cli.reading import open_file
from flashar_cli.tensorfiles import plain_tensors, read_pickle, read_safetensors

WRAPPERS = ("model", "module", "state_dict")


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a pickled ``.pt``/``.pth``/``.bin`` one, bare or under a wrapper key.

    Pickles are read with ``weights_only=True``, so a file that would run code is refused. Raises FlasharError.
    """
    if not path.exists():
        raise FlasharError(f"{path} is not a file; expected upstream weights (.pt or .safetensors)")
    document = read_safetensors(path) if path.suffix == ".safetensors" else _unwrap(read_pickle(path), path)
    return plain_tensors(document, path)


def guess_family(state: Mapping[str, Tensor], wanted: str | None, path: Path) -> Family:
    """The family that the keys speak for. Raises FlasharError where they contradict ``wanted`` or are no family's."""
    if "tok_embeddings.weight" not in state or "layers.0.attention.wqkv.weight" not in state:
        some = ", ".join(sorted(state)[:3])
        raise FlasharError(
            f"{path} is not a LlamaGen-like model: it has {len(state)} tensors such as {some}; "
            "expected tok_embeddings.weight, layers.0.attention.wqkv.weight and so on"
        )
    has_branch = "medusa_output.weight" in state or "medusa_norm.weight" in state
    has_gate = any(name.startswith(("hv_gate_mlp.", "hv_mix_logit")) for name in state)
    keys_say = "llamagen-flashar" if has_gate else "nar" if has_branch else "llamagen"
    if wanted is None or wanted == keys_say:
        return get_family(keys_say)
    if wanted == "llamagen-flashar" and has_branch:
        return get_family(wanted)  # without gate keys: the authors' fixed mean
    get_family(wanted)
    sign = {
        "llamagen-flashar": "gate keys hv_gate_mlp.* or hv_mix_logit",
        "nar": "medusa_norm and medusa_output without a gate",
        "llamagen": "no medusa_* keys",
    }[keys_say]
    raise FlasharError(f"{path} is {keys_say} by its keys ({sign}), got --family {wanted}; leave --family out")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwrap(document: object, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
            break
    tensors = {k: v for k, v in document.items() if isinstance(v, Tensor)} if isinstance(document, Mapping) else {}
    if not tensors or not isinstance(document, Mapping):
        raise FlasharError(
            f"{path} holds no tensors at its top or under {', '.join(WRAPPERS)}; expected an upstream checkpoint"
        )
    others = [
        repr(name)[:80] for name, value in document.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others:
        raise FlasharError(f"{path} holds {', '.join(others[:5])} beside its tensors; expected tensors by name alone")
    return tensors
