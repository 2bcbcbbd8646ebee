"""From a checkpoint back to the upstream layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from flashar_cli.checkpoint import Loaded
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.files import atomic_files
from flashar_cli.tensorfiles import save_pickle
from flashar_cli.tokenizers.upstream import STATISTICS


def export(loaded: Loaded) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Upstream-named tensors of model and tokenizer. Raises FlasharError where upstream has no such part."""
    config = loaded.config
    family = get_family(config.family)
    if config.branch is not None and family.name == "llamagen":
        # The authors keep a LlamaGen with a branch under names of their own.
        family = get_family("llamagen-flashar")
    state = loaded.model.state_dict()
    if config.branch is not None and config.branch.gate == "hidden":
        raise FlasharError("the 'hidden' gate has no upstream layout; only gates logits, scalar and mean do")
    model = {family.to_upstream(name, config.backbone.num_layers): tensor for name, tensor in state.items()}
    if loaded.tokenizer is None:
        return model, None
    return model, {**loaded.tokenizer.state_dict(), **{key: torch.zeros(size) for key, size in STATISTICS.items()}}


def write_upstream(states: Mapping[Path, Mapping[str, Tensor]]) -> None:
    """Writes each ``{"model": state}`` as a ``.pt`` file, or the bare tensors as ``.safetensors``; all or none."""
    with atomic_files(*states) as files:
        for (path, state), file in zip(states.items(), files, strict=True):
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            if path.suffix == ".safetensors":
                file.write(save(tensors))
            else:
                save_pickle({"model": tensors}, file)
