"""Small upstream files of every family, of random shapes."""

from __future__ import annotations

import torch
from torch import Tensor


def upstream_state(
    family: str = "llamagen",
    dim: int = 32,
    num_layers: int = 3,
    depth: int = 1,
    vocab_size: int = 48,
    num_classes: int = 7,
    ffn_dim: int = 40,
    gate: str = "logits",
    caption_dim: int | None = None,
    scale: float = 0.1,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Tensors under upstream's names, as a published checkpoint of this family holds them."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state = {"tok_embeddings.weight": weight(vocab_size, dim)}
    if caption_dim is None:
        state["cls_embedding.embedding_table.weight"] = weight(num_classes + 1, dim)
    else:
        state["cls_embedding.uncond_embedding"] = weight(120, caption_dim)
        state["cls_embedding.cap_proj.fc1.weight"] = weight(dim, caption_dim)
        state["cls_embedding.cap_proj.fc2.weight"] = weight(dim, dim)
    heads = [("norm", "output")]
    if family != "llamagen":
        num_layers += depth
        heads.append(("medusa_norm", "medusa_output"))
    for layer in range(num_layers):
        state[f"layers.{layer}.attention.wqkv.weight"] = weight(3 * dim, dim)
        state[f"layers.{layer}.attention.wo.weight"] = weight(dim, dim)
        state[f"layers.{layer}.feed_forward.w1.weight"] = weight(ffn_dim, dim)
        state[f"layers.{layer}.feed_forward.w3.weight"] = weight(ffn_dim, dim)
        state[f"layers.{layer}.feed_forward.w2.weight"] = weight(dim, ffn_dim)
        state[f"layers.{layer}.attention_norm.weight"] = 1 + weight(dim)
        state[f"layers.{layer}.ffn_norm.weight"] = 1 + weight(dim)
    for norm, head in heads:
        state[f"{norm}.weight"] = 1 + weight(dim)
        state[f"{head}.weight"] = weight(vocab_size, dim)
    if family == "llamagen-flashar" and gate == "logits":
        state["hv_gate_mlp.0.weight"] = weight(32, 2 * vocab_size)
        state["hv_gate_mlp.2.weight"] = weight(1, 32)
        state["hv_gate_mlp.2.bias"] = weight(1)
    if family == "llamagen-flashar" and gate == "scalar":
        state["hv_mix_logit"] = weight(1)[0]
    return state
