"""Emu3.5-Image (BAAI) and the FlashAR authors' adaptation of it: one Llama-like model of text and visual tokens.

Upstream's tables and heads cover one vocabulary: text, then visual tokens. Here the table is cut in two, and of the
heads only the visual rows are kept, because image decoding gives all other tokens no chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from flashar_cli.config import BackboneConfig, BranchConfig, IBQConfig, Sampling, TextPrefix, TokenizerConfig, validated
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions, Family, HubFiles, Preset, RasterFacts
from flashar_cli.families.keys import Joined, KeyTable, Rows, qkv_rows, text_rows, visual_rows
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds

if TYPE_CHECKING:
    from flashar_cli.files.lazy import Lazy

# Prompts as upstream's scripts write them (lxazjk/Emu3.5-FlashAR generate_flashar.py, flashar/utils/text_utils.py).
IMAGE_PREFIX = "<|image start|>{height}*{width}<|image token|>"
TEMPLATE = "<|extra_203|>You are a helpful assistant for t2i task. USER: {prompt} ASSISTANT: <|extra_100|>"
UNCONDITIONAL = "<|extra_203|>You are a helpful assistant. USER:  ASSISTANT: <|extra_100|>"
GUIDANCE = Sampling(cfg_scale=2.5)
DEFAULT_GRID = Grid(32, 32)
MAX_PROMPT = 1024  # tokens; the published model was trained with far longer texts
TRAINED_PROMPT = 128 + 7  # a filled template, and the image prefix of a grid with two digits a side
END_OF_IMAGE, END_OF_LINE, PADDING = 151853, 151846, 151643  # <|image end|>, <|extra_200|>, <|endoftext|>

Count = Annotated[int, bounds.WIDTH]
TokenId = Annotated[int, bounds.TOKEN_ID]


class _Config(BaseModel):
    """What is needed of ``config.json``. A missing key has upstream's default (src/emu3p5/configuration_emu3.py); what
    the shapes of the weights tell is not asked.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    rms_norm_eps: float = 1e-5
    rope_theta: float = 1000000.0
    rope_scaling: None = None
    max_position_embeddings: Annotated[int, bounds.POSITIONS] = 9216
    hidden_act: Literal["silu"] = "silu"
    eoi_token_id: TokenId = END_OF_IMAGE
    eol_token_id: TokenId = END_OF_LINE
    pad_token_id: TokenId = PADDING
    visual_token_offset: TokenId | None = None


def text_prefix(num_text: int, line_end: int | None, pad_id: int) -> TextPrefix:
    """Prompts of a model whose first visual token has the id ``num_text``."""
    return TextPrefix(
        vocab_size=num_text,
        template=TEMPLATE + IMAGE_PREFIX,
        uncond_template=UNCONDITIONAL + IMAGE_PREFIX,
        pad_id=pad_id,
        line_end=line_end,
        max_length=MAX_PROMPT,
        train_length=TRAINED_PROMPT,
    )


# BAAI/Emu3.5-Image, from its published shapes.
EMU_34B = BackboneConfig(
    dim=5120,
    num_layers=64,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    ffn_dim=25600,
    vocab_size=131072,
    norm_eps=1e-6,
    rope="1d",
    rope_base=1000000.0,
    qk_norm=True,
    max_positions=32768,
)


def preset(name: str, family: str, repo: str, branch: BranchConfig | None = None) -> Preset[RasterFacts]:
    """A published model of 34 billion parameters."""
    return Preset(
        name=name,
        facts=RasterFacts(
            family=family,
            backbone=EMU_34B,
            prefix=text_prefix(END_OF_IMAGE + 1, END_OF_LINE, PADDING),
            grid=DEFAULT_GRID,
            tokenizer=IBQConfig(),
            branch=branch,
            generation=GUIDANCE,
        ),
        weights=HubFiles(repo, ("*.json", "*.safetensors", "*.tiktoken", "*.txt")),
        tokenizer_weights=HubFiles("BAAI/Emu3.5-VisionTokenizer", ("config.yaml", "model.ckpt")),
    )


def _blocks(theirs: str, ours: str) -> tuple[tuple[str | Joined, str], ...]:
    """The names in a stack of blocks."""
    parts = tuple(f"{theirs}.{{}}.self_attn.{part}_proj.weight" for part in "qkv")
    return (
        (Joined(parts, qkv_rows), f"{ours}.{{}}.attention.wqkv.weight"),
        (f"{theirs}.{{}}.self_attn.o_proj.weight", f"{ours}.{{}}.attention.wo.weight"),
        (f"{theirs}.{{}}.self_attn.q_norm.weight", f"{ours}.{{}}.attention.q_norm.weight"),
        (f"{theirs}.{{}}.self_attn.k_norm.weight", f"{ours}.{{}}.attention.k_norm.weight"),
        (f"{theirs}.{{}}.mlp.gate_proj.weight", f"{ours}.{{}}.feed_forward.w1.weight"),
        (f"{theirs}.{{}}.mlp.down_proj.weight", f"{ours}.{{}}.feed_forward.w2.weight"),
        (f"{theirs}.{{}}.mlp.up_proj.weight", f"{ours}.{{}}.feed_forward.w3.weight"),
        (f"{theirs}.{{}}.input_layernorm.weight", f"{ours}.{{}}.attention_norm.weight"),
        (f"{theirs}.{{}}.post_attention_layernorm.weight", f"{ours}.{{}}.ffn_norm.weight"),
    )


def _backbone(prefix: str, head: str) -> tuple[tuple[str | Joined | Rows, str], ...]:
    """The names of a backbone under ``prefix`` with this output head."""
    return (
        (Rows(f"{prefix}.embed_tokens.weight", text_rows), "prefix.embedding.weight"),
        (Rows(f"{prefix}.embed_tokens.weight", visual_rows), "backbone.embedding.weight"),
        *_blocks(f"{prefix}.layers", "backbone.blocks"),
        (f"{prefix}.norm.weight", "backbone.norm.weight"),
        (Rows(f"{head}.weight", visual_rows), "backbone.head.weight"),
    )


class EmuLayout(Family):
    """What base and adaptation share: a backbone under the names ``backbone.*``."""

    title = "Emu3.5 model"
    hallmark = "model.embed_tokens with lm_head and q_norm, or horizontal_head and vertical_head, in Emu3.5's layout"
    needed: ClassVar[tuple[str, ...]] = (
        "num_heads",
        "grid",
        "norm_eps",
        "rope_base",
        "visual_token_offset",
        "eol_token_id",
    )
    new_branch_depth = 4
    new_branch_sees_prefix = False
    tokenizer_title = "Emu3.5 image tokenizer"
    text_tokenizer = ("emu3.tiktoken", "emu3_vision_tokens.txt")
    backbone: ClassVar[str]

    def read(self, source: Source, options: ConvertOptions, tokenizer: Any) -> RasterFacts:
        document = self.read_document(source)
        config = validated(document, _Config, str(source.path / "config.json"), "of an Emu3.5 model")
        notes: list[str] = []
        backbone, num_text = self.read_backbone(source, options, document, config)
        line_end: int | None = options.eol_token_id
        if line_end is None:
            line_end = config.eol_token_id
            if line_end >= num_text:
                notes.append(f"no end-of-line tokens: {line_end} is no text token; pass --eol-token-id if there is one")
                line_end = None
        return RasterFacts(
            family=self.name,
            backbone=backbone,
            prefix=text_prefix(num_text, line_end, config.pad_token_id if config.pad_token_id < num_text else 0),
            grid=options.grid or DEFAULT_GRID,
            tokenizer=tokenizer,
            branch=self.read_branch(source, options, backbone),
            generation=GUIDANCE,
            notes=tuple(notes),
        )

    def read_tokenizer(self, source: Source) -> tuple[TokenizerConfig, dict[str, Lazy]]:
        from flashar_cli.tokenizers.ibq_upstream import read_state

        return read_state(source.state)

    def tokenizer_to_upstream(self, state: Mapping[str, Any]) -> dict[str, Any]:
        from flashar_cli.tokenizers.ibq_upstream import to_upstream

        return to_upstream(state)

    def read_document(self, source: Source) -> dict[str, Any]:
        """The backbone's config; an empty one where the directory has none."""
        return source.document("config.json")

    def read_branch(self, source: Source, options: ConvertOptions, backbone: BackboneConfig) -> BranchConfig | None:
        """The branch of the files."""
        return None

    def read_backbone(
        self, source: Source, options: ConvertOptions, document: dict[str, Any], config: _Config
    ) -> tuple[BackboneConfig, int]:
        """The backbone, and how many text tokens come before the visual ones."""
        refuse_other(source, "--norm-eps", options.norm_eps, document.get("rms_norm_eps"))
        refuse_other(source, "--rope-base", options.rope_base, document.get("rope_theta"))
        attention, name = f"{self.backbone}.layers.0.self_attn", self.name
        rows, dim = source.shape(f"{self.backbone}.embed_tokens.weight", name)
        head_dim = source.length(f"{attention}.q_norm.weight", name)
        query_rows, key_rows = (source.shape(f"{attention}.{part}_proj.weight", name)[0] for part in "qk")
        refuse_other(source, "--num-heads", options.num_heads, query_rows // head_dim)
        told = config.visual_token_offset
        refuse_other(source, "--visual-token-offset", options.visual_token_offset, told)
        offset = next(each for each in (options.visual_token_offset, told, config.eoi_token_id + 1) if each is not None)
        if not 1 <= offset < rows - 1:
            raise FlasharError(
                f"{source.path} has {rows} tokens, and its visual ones would begin at {offset}; pass "
                "--visual-token-offset, the id of the first visual token"
            )
        backbone = BackboneConfig(
            dim=dim,
            num_layers=source.count_blocks(f"{self.backbone}.layers"),
            num_heads=query_rows // head_dim,
            num_kv_heads=key_rows // head_dim,
            head_dim=head_dim,
            ffn_dim=source.shape(f"{self.backbone}.layers.0.mlp.gate_proj.weight", name)[0],
            vocab_size=rows - offset,
            norm_eps=config.rms_norm_eps if options.norm_eps is None else options.norm_eps,
            rope="1d",
            rope_base=config.rope_theta if options.rope_base is None else options.rope_base,
            qk_norm=True,
            max_positions=config.max_position_embeddings,
        )
        return backbone, offset


def refuse_other(source: Source, option: str, wanted: float | None, told: float | None) -> None:
    """Raises FlasharError for an option that contradicts what the files tell."""
    if None not in (wanted, told) and wanted != told:
        raise FlasharError(f"{option} is {wanted}, but {source.path} says {told}; leave it out")


class EmuImage(EmuLayout):
    """The published base: ``model.*`` and ``lm_head``."""

    name = "emu3.5-image"
    sign = "model.* with q_norm, and lm_head"
    presets = (preset("emu3.5-image", "emu3.5-image", "BAAI/Emu3.5-Image"),)
    keys = KeyTable(*_backbone("model", "lm_head"))
    backbone = "model"

    def recognises(self, source: Source) -> bool:
        return {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_norm.weight"} <= set(
            source.state
        )


class EmuFlashAR(EmuLayout):
    """The FlashAR authors' adaptation: ``backbone.*``, two heads, the branch's blocks, norm and gates."""

    name = "emu3.5-flashar"
    sign = "horizontal_head and vertical_head"
    presets = (
        preset(
            "emu3.5-image-flashar",
            "emu3.5-flashar",
            "lxazjk/Emu3.5-Image-FlashAR",
            # Where upstream's training starts a branch of four blocks; the published files may tell another place.
            BranchConfig(layer=60, depth=4, sees_prefix=False, gate="hidden", gate_dim=640),
        ),
    )
    needed = (*EmuLayout.needed, "branch_layer", "branch_depth")
    keys = KeyTable(
        *_backbone("backbone", "horizontal_head"),
        *_blocks("vertical_block", "branch.blocks"),
        ("vertical_norm.weight", "branch.norm.weight"),
        (Rows("vertical_head.weight", visual_rows), "branch.head.weight"),
        ("hv_gate_mlp.0.weight", "branch.gate.mlp.fc1.weight"),
        ("hv_gate_mlp.2.*", "branch.gate.mlp.fc2.*"),
        ("hv_gate_corner.*", "branch.gate.corner.*"),
    )
    backbone = "backbone"

    def recognises(self, source: Source) -> bool:
        return {"backbone.embed_tokens.weight", "horizontal_head.weight", "vertical_head.weight"} <= set(source.state)

    def read_document(self, source: Source) -> dict[str, Any]:
        document = source.document("config.json")
        inner = document.get("backbone_config")
        return {**document, **(inner if isinstance(inner, dict) else {})}

    def read_branch(self, source: Source, options: ConvertOptions, backbone: BackboneConfig) -> BranchConfig:
        depth = source.count_blocks("vertical_block")
        told = {**source.document("config.json"), **source.document("checkpoint_meta.json")}
        layer = told.get("vertical_start_layer")
        if not isinstance(layer, int) or layer < 0:
            layer = None
        refuse_other(source, "--branch-layer", options.branch_layer, layer)
        refuse_other(source, "--branch-depth", options.branch_depth, depth)
        layer = options.branch_layer if layer is None else layer
        last = backbone.num_layers
        if layer is None or layer > last:
            raise FlasharError(
                f"the files of {source.path} don't tell where the branch starts; pass --branch-layer M with "
                f"0 <= M <= {last} (got {layer})"
            )
        gate_dim = source.shape("hv_gate_mlp.0.weight", self.name)[0]
        return BranchConfig(layer=layer, depth=depth, sees_prefix=False, gate="hidden", gate_dim=gate_dim)
