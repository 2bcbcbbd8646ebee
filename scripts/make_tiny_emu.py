"""Makes the untrained base of emu-tiny: python -m scripts.make_tiny_emu TOKENIZER_DIR OUT

TOKENIZER_DIR is what train_tiny_tokenizer.py wrote. OUT becomes a checkpoint with random weights and the vocabulary of
prompts about the drawn shapes; train_tiny_base.py trains it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from flashar_cli import __version__
from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import (
    BackboneConfig,
    GridConfig,
    Provenance,
    RasterConfig,
    Sampling,
    TextPrefix,
    TokenizerConfig,
)
from flashar_cli.tokenizers import ImageTokenizer
from scripts.tiny.raster_training import new_model
from scripts.tiny.tokenizer_training import load_trained_tokenizer
from scripts.tiny.vocabulary import RANKS_FILE, SPECIAL_FILE, TEMPLATE, UNCONDITIONAL, special_ids, write_vocabulary


def tiny_config(tokenizer: TokenizerConfig) -> RasterConfig:
    """Emu3.5's architecture, small: grouped queries, normed queries and keys, rotary places, ends of lines."""
    special = special_ids()
    return RasterConfig(
        family="emu3.5-image",
        backbone=BackboneConfig(
            dim=128,
            num_layers=6,
            num_heads=4,
            num_kv_heads=2,
            ffn_dim=384,
            vocab_size=tokenizer.codebook_size,
            rope="1d",
            rope_base=1e6,
            qk_norm=True,
            max_positions=1024,
        ),
        prefix=TextPrefix(
            vocab_size=max(special.values()) + 1,
            template=TEMPLATE,
            uncond_template=UNCONDITIONAL,
            pad_id=special["<|endoftext|>"],
            line_end=special["<|extra_200|>"],
            max_length=64,
        ),
        grid=GridConfig(height=16, width=16),
        tokenizer=tokenizer,
        generation=Sampling(cfg_scale=1.5),
        provenance=Provenance(tool_version=__version__),
    )


def make_base(config: RasterConfig, tokenizer: ImageTokenizer, out: Path, seed: int) -> None:
    """Writes a checkpoint with random weights, this image tokenizer, and the vocabulary of the drawn shapes."""
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder))
        files = {"text_tokenizer.tiktoken": RANKS_FILE, "text_tokenizer_special.txt": SPECIAL_FILE}
        extras = {name: Path(folder) / file for name, file in files.items()}
        checkpoint.save(out, config, new_model(config, seed).state_dict(), tokenizer.state_dict(), extras=extras)


def main() -> None:
    parser = argparse.ArgumentParser(description="make the untrained base of emu-tiny")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER_DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = load_trained_tokenizer(args.tokenizer)
    make_base(tiny_config(tokenizer.config), tokenizer, args.out, args.seed)


if __name__ == "__main__":
    main()
