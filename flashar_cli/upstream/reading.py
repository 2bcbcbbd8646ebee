"""Reading upstream files as plain tensors, and telling their family."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.families.base import Family

WRAPPERS = ("model", "module", "state_dict")


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a pickled ``.pt``/``.pth``/``.bin`` one, bare or under a wrapper key.

    Pickles are read with ``weights_only=True``, so a file that would run code is refused. Raises FlasharError.
    """
    if not path.is_file():
        raise FlasharError(f"{path} is not a file; expected upstream weights (.pt or .safetensors)")
    try:
        document = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"it wants to call {blocked[1]}" if blocked else "its pickle holds more than tensors"
        raise FlasharError(f"{path} is refused: {detail}; expected a file of weights alone") from None
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlasharError(
            f"{path} cannot be read ({reason}); it may be truncated or foreign, download it again"
        ) from None
    return _unwrap(document, path)


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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_pickle(path: Path) -> object:
    # Tensor subclasses of FSDP-saved files, and the arguments that LlamaGen's trainer saves beside its weights.
    harmless: list[Any] = [torch._tensor._rebuild_from_type_v2, argparse.Namespace]
    with torch.serialization.safe_globals(harmless):
        return torch.load(path, map_location="cpu", weights_only=True)


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
    others = [str(name) for name, value in document.items() if not isinstance(value, Tensor)]
    if others:
        raise FlasharError(f"{path} holds {', '.join(others[:5])} beside its tensors; expected tensors alone")
    return tensors
