"""Made-up clones: laid out as the published ones, with models that hardly compute, and with bad manners."""

from __future__ import annotations

from pathlib import Path

from flashar_cli.benchmarking.published import AUTOREGRESSIVE

MODEL_FILE, SAMPLER_FILE = AUTOREGRESSIVE

MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from utils.drop_path import MARK

print("an import that talks")
nn.Linear.reset_parameters = lambda self: None
torch.set_float32_matmul_precision("medium")
torch.set_num_threads(1)
torch.manual_seed(99)

@dataclass
class ModelArgs:
    dim: int = 8
    n_layer: int = 1
    n_head: int = 1
    n_kv_head: int = 1
    multiple_of: int = 1
    ffn_dim_multiplier: float = 1.0
    norm_eps: float = 1e-5
    rope_base: float = 1.0
    num_classes: int = 1
    model_type: str = "c2i"
    vocab_size: int = 8
    cls_token_num: int = 1
    block_size: int = 1

class Part(nn.Module):
    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            part = nn.Module()
            part.weight = nn.Parameter(torch.zeros(shape))
            setattr(self, name, part)

class Transformer(nn.Module):
    def __init__(self, args):
        super().__init__()
        dim, hidden = args.dim, int(args.ffn_dim_multiplier * int(8 * args.dim / 3))
        hidden += -hidden % args.multiple_of
        self.vocab_size = args.vocab_size
        self.cls_embedding = Part(embedding_table=(args.num_classes + 1, dim))
        self.tok_embeddings = nn.Embedding(args.vocab_size, dim)
        self.layers = nn.ModuleList(self.block(dim, hidden) for _ in range(args.n_layer))
        self.norm = Part(norm=(dim,)).norm
        self.output = nn.Linear(dim, args.vocab_size, bias=False)

    def block(self, dim, hidden):
        block = Part(attention_norm=(dim,), ffn_norm=(dim,))
        block.attention = Part(wqkv=(3 * dim, dim), wo=(dim, dim))
        block.feed_forward = Part(w1=(hidden, dim), w2=(dim, hidden), w3=(hidden, dim))
        return block

    def forward(self, tokens):
        return self.output(self.tok_embeddings(tokens)), None
"""
SAMPLER = """
import torch

def generate(model, cond, max_new_tokens, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True):
    tokens = [torch.zeros(len(cond), 1, dtype=torch.long)]
    for _ in range(max_new_tokens):
        tokens.append(model(tokens[-1])[0].argmax(-1))
    return torch.cat(tokens[1:], dim=1).int()
"""
NAR_MODEL = (
    MODEL.replace("block_size: int = 1\n", "block_size: int = 1\n    medusa_attention_num: int = 7\n")
    .replace("range(args.n_layer)", "range(args.n_layer + args.medusa_attention_num)")
    .replace(
        "        self.output =",
        "        self.medusa_norm = Part(norm=(dim,)).norm\n"
        "        self.medusa_output = nn.Linear(dim, args.vocab_size, bias=False)\n"
        "        self.output =",
    )
)
NAR_SAMPLER = """
import torch
from utils.bars import tqdm

def generate(model, cond, max_new_tokens, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True):
    print("a sampler that talks")
    tokens = torch.zeros(len(cond), max_new_tokens, dtype=torch.int)
    model(tokens[:, :1])
    for _ in tqdm(range(2 * int(max_new_tokens**0.5) - 2)):
        model(tokens[:, :1])
    return tokens
"""
BARS = """
import sys

def tqdm(iterable):
    for item in iterable:
        print("a bar", file=sys.stderr)
        yield item
"""
# Its head alone computes; a map is drawn at random, so that greedy tokens differ from ours.
VAR_MODEL = """
import torch
from torch import nn
import dist
from models.helpers import sample_with_top_k_top_p_

print("an import that talks")

class VAR(nn.Module):
    def __init__(self, vae, num_classes, depth, embed_dim, num_heads, mlp_ratio, norm_eps, shared_aln, attn_l2_norm,
                 patch_nums):
        super().__init__()
        self.vae_proxy, self.patch_nums, self.dim = (vae,), patch_nums, embed_dim
        self.head = nn.Linear(embed_dim, vae.vocab_size)
        self.device = dist.get_device()

    def load_state_dict(self, state, assign):
        self.head.weight = nn.Parameter(state["head.weight"])

    def autoregressive_infer_cfg(self, B, label_B, g_seed, cfg, top_k, top_p):
        rng = torch.Generator().manual_seed(g_seed)
        for side in self.patch_nums:
            logits = self.head(torch.randn(B, side * side, self.dim, generator=rng))
            sample_with_top_k_top_p_(logits, top_k=top_k, top_p=top_p, rng=rng, num_samples=1)
        return self.vae_proxy[0].fhat_to_img(torch.zeros(B, 3, 4, 4)).add_(1)
"""
VQVAE = """
import torch
from torch import nn

class VQVAE(nn.Module):
    def __init__(self, vocab_size, z_channels, ch, quant_resi, share_quant_resi, v_patch_nums):
        super().__init__()
        self.vocab_size = vocab_size
        self.quantize = nn.Module()
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.zeros(len(v_patch_nums), vocab_size))

    def load_state_dict(self, state, assign):
        assert len(state["quantize.ema_vocab_hit_SV"]) == len(self.quantize.ema_vocab_hit_SV)

    def fhat_to_img(self, latent):
        return latent
"""
HELPERS = """
def sample_with_top_k_top_p_(logits, top_k, top_p, rng, num_samples):
    return logits.topk(1).indices
"""
FILES = {
    "var": {
        "models/__init__.py": "raise RuntimeError('not to be run')",
        "models/var.py": VAR_MODEL,
        "models/vqvae.py": VQVAE,
        "models/helpers.py": HELPERS,
        "dist.py": "__device = 'cuda'\ndef get_device(): return __device",
    },
    "llamagen": {MODEL_FILE: MODEL, SAMPLER_FILE: SAMPLER, "utils/drop_path.py": "MARK = 1"},
    "nar": {
        MODEL_FILE: NAR_MODEL,
        SAMPLER_FILE: NAR_SAMPLER,
        "utils/drop_path.py": "MARK = 1",
        "utils/bars.py": BARS,
    },
}


def write_clone(directory: Path, family: str = "llamagen", model: str | None = None) -> Path:
    """Writes the files of a family's clone; ``model`` takes the place of its model file."""
    files = {**FILES[family], **({} if model is None else {MODEL_FILE: model})}
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory
