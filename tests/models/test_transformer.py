"""The backbone's facts against code nobody here wrote: Llama, Qwen2 and Qwen3 of the transformers library."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flashar_cli.config import BackboneConfig, BranchConfig, ClassPrefix, GridConfig, Provenance, RasterConfig
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.transformer import MLPEmbedding, MLPHead
from flashar_cli.nn.masks import order_mask

transformers = pytest.importorskip("transformers")
SHAPE = {
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def model_of(backbone: BackboneConfig, num_classes: int = 7, **facts: object) -> FlasharModel:
    return FlasharModel(
        RasterConfig(
            family="llamagen",
            backbone=backbone,
            prefix=ClassPrefix(num_classes=num_classes),
            grid=GridConfig(height=3, width=5),
            provenance=Provenance(tool_version="test"),
            **facts,
        )
    )


def model_like(theirs: nn.Module, **facts: object) -> FlasharModel:
    """Our model with the weights of theirs; its class table is their token table, so a class stands for a token."""
    config = theirs.config
    backbone = BackboneConfig(
        dim=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        ffn_dim=config.intermediate_size,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        rope="1d",
        rope_base=10000.0,
        **facts,
    )
    model = model_of(backbone, config.vocab_size - 1).eval()
    given = theirs.state_dict()
    table = given["model.embed_tokens.weight"]
    state = {"prefix.embedding.weight": table, "backbone.embedding.weight": table}
    state |= {"backbone.norm.weight": given["model.norm.weight"], "backbone.head.weight": given["lm_head.weight"]}
    parts = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for index in range(config.num_hidden_layers):
        old, new = f"model.layers.{index}.", f"backbone.blocks.{index}."
        for kind in ("weight", "bias") if backbone.attention_bias else ("weight",):
            joined = [given[f"{old}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            state[f"{new}attention.wqkv.{kind}"] = torch.cat(joined)
        state[f"{new}attention.wo.weight"] = given[f"{old}self_attn.o_proj.weight"]
        state[f"{new}attention_norm.weight"] = given[f"{old}input_layernorm.weight"]
        state[f"{new}ffn_norm.weight"] = given[f"{old}post_attention_layernorm.weight"]
        for theirs_name, ours in parts.items():
            state[f"{new}feed_forward.{ours}.weight"] = given[f"{old}mlp.{theirs_name}.weight"]
        if backbone.qk_norm:
            for name in ("q_norm", "k_norm"):
                state[f"{new}attention.{name}.weight"] = given[f"{old}self_attn.{name}.weight"]
    model.load_state_dict(state)
    return model


def scaled(model: nn.Module) -> nn.Module:
    """Larger weights, and vectors that are not all ones or zeros: small ones would hide most errors."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


CASES = {
    "llama": ("Llama", {}, {}),
    "wide heads": ("Llama", {"head_dim": 12}, {"head_dim": 12}),
    "biases": ("Qwen2", {}, {"attention_bias": True}),
    "q and k norms": ("Qwen3", {"head_dim": 16}, {"head_dim": 16, "qk_norm": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_raster_logits_are_those_of_the_library(name: str) -> None:
    kind, settings, facts = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **settings)
    theirs = scaled(getattr(transformers, f"{kind}ForCausalLM")(config))
    ours = model_like(theirs, **facts)
    tokens = torch.randint(23, (2, 16))
    with torch.no_grad():
        expected = theirs(tokens).logits[:, :15]
        # The first token stands where the class does; the last one predicts nothing that is in the grid.
        got = ours(tokens[:, 1:], Conditions(labels=tokens[:, 0].clamp(max=21)), Grid(3, 5).raster()).logits
        first = theirs(torch.cat([tokens[:, :1].clamp(max=21), tokens[:, 1:]], dim=1)).logits[:, :15]
    assert first.std() > 0.5 and (tokens[:, 0] < 22).all() == torch.equal(first, expected)
    torch.testing.assert_close(got, first, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_diagonal_order_is_that_order_in_the_library(name: str) -> None:
    """It takes any mask and any positions: each cell keeps its place in the raster, whatever the order."""
    kind, settings, facts = CASES[name]
    torch.manual_seed(0)
    theirs = scaled(
        getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SHAPE, **settings))
    )
    ours, order = model_like(theirs, **facts), Grid(3, 5).diagonal()
    ours.add_branch(BranchConfig(layer=3, gate="mean"), seed=0)
    labels, tokens = torch.randint(22, (2, 1)), torch.randint(23, (2, 15))
    mask = order_mask(order, 1, torch.device("cpu"))[:15, :15].expand(2, 1, -1, -1)
    places = torch.tensor([0, *(1 + cell for cell in order.cells[:-1])]).expand(2, -1)
    with torch.no_grad():
        sequence = torch.cat([labels, tokens[:, :-1]], dim=1)
        expected = theirs(sequence, attention_mask=mask, position_ids=places).logits
        read = ours(tokens, Conditions(labels=labels[:, 0]), order, read=lambda hidden, _: hidden.horizontal)
        got = ours.backbone.head(read)
    assert expected.std() > 0.5
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "facts",
    (
        {"rope": "1d", "qk_norm": True, "attention_bias": True},
        {"head_dim": 12, "embedding_dim": 5, "head_hidden_dim": 24},
    ),
)
def test_a_config_counts_the_weights_of_its_model(facts: dict[str, object]) -> None:
    backbone = BackboneConfig(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=50, **facts)
    model = model_of(backbone, branch={"layer": 1, "depth": 2, "gate": "hidden", "gate_dim": 64})
    assert model.config.num_weights == sum(parameter.numel() for parameter in model.parameters())
    assert backbone.block_weights == sum(parameter.numel() for parameter in model.backbone.blocks[0].parameters())
    matrices = [part.weight.numel() for part in model.backbone.blocks[0].modules() if isinstance(part, nn.Linear)]
    assert backbone.block_linear_weights == sum(matrices)
    outputs = [part.out_features for part in model.backbone.head.modules() if isinstance(part, nn.Linear)]
    assert backbone.head_linear_outputs == sum(outputs)


def test_mlp_embedding_and_head_by_hand() -> None:
    torch.manual_seed(0)
    embedding, head, tokens = MLPEmbedding(9, 3, 8), MLPHead(8, 6, 9), torch.tensor([[0, 8, 4]])
    with torch.no_grad():
        gelu = nn.GELU()
        x = gelu(embedding.weight[tokens] @ embedding.fc1.weight.T + embedding.fc1.bias)
        x = x @ embedding.fc2.weight.T + embedding.fc2.bias
        torch.testing.assert_close(embedding(tokens), x)
        logits = gelu(x @ head.fc1.weight.T + head.fc1.bias) @ head.fc2.weight.T + head.fc2.bias
        torch.testing.assert_close(head(x), logits)


def test_a_fresh_head_is_zero_and_norms_are_one() -> None:
    backbone = BackboneConfig(
        dim=16, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=8, vocab_size=9, qk_norm=True, head_hidden_dim=8
    )
    model = model_of(backbone)
    model.initialise(seed=0)
    assert not model.backbone.head.fc2.weight.any() and model.backbone.head.fc1.weight.any()
    assert bool((model.backbone.blocks[0].attention.q_norm.weight == 1).all())
    model.initialise(seed=0, zero_head=False)
    assert model.backbone.head.fc2.weight.any()
