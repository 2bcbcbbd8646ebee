"""Trains the image tokenizer of llamagen-tiny: python -m scripts.train_tiny_tokenizer OUT

Writes OUT/tokenizer.safetensors (float16) and OUT/tokenizer.json: the config, the settings, and the quality of the
rounded weights on held-out images; OUT/unmerged.safetensors is the tokenizer before close tokens were merged.
About fifteen minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashar_cli.config import VQConfig
from flashar_cli.data.shapes import TRAINING_SEED, draw_batch
from flashar_cli.tokenizers.pixels import from_uint8
from flashar_cli.tokenizers.vq import VQTokenizer
from scripts.tiny.codebook import merge_tokens
from scripts.tiny.tokenizer_training import TINY_CONFIG, TokenizerTraining, evaluate_tokenizer, train_tokenizer


def half(tokenizer: VQTokenizer) -> dict[str, Tensor]:
    return {name: tensor.half().contiguous() for name, tensor in tokenizer.state_dict().items()}


def rounded_tokenizer(config: VQConfig, state: dict[str, Tensor]) -> VQTokenizer:
    """A float32 tokenizer with the values that half precision keeps."""
    tokenizer = VQTokenizer(config).eval()
    tokenizer.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return tokenizer


def main() -> None:
    defaults = TokenizerTraining()
    parser = argparse.ArgumentParser(description="train the image tokenizer of llamagen-tiny on drawn shapes")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write to")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--merged-tokens", type=int, default=defaults.merged_tokens, help="size of the final codebook")
    parser.add_argument("--from-unmerged", type=Path, help="unmerged.safetensors of an earlier run: only merge")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = replace(
        defaults, steps=args.steps, batch_size=args.batch_size, lr=args.lr, seed=args.seed,
        merged_tokens=args.merged_tokens,
    )  # fmt: skip

    started = time.monotonic()
    if args.from_unmerged:
        trained = rounded_tokenizer(TINY_CONFIG, load_file(args.from_unmerged))
    else:
        trained = train_tokenizer(TINY_CONFIG, settings, log=lambda line: print(line, flush=True))
    training_s = time.monotonic() - started
    unmerged = half(trained)
    images, _ = draw_batch(TRAINING_SEED, 0, settings.merging_images)
    merged = merge_tokens(rounded_tokenizer(TINY_CONFIG, unmerged), from_uint8(images), settings.merged_tokens)

    state = half(merged)
    rounded = rounded_tokenizer(merged.config, state)
    report = {
        "config": merged.config.model_dump(),
        "training": asdict(settings),
        "training_s": round(training_s, 1),
        "num_parameters": sum(tensor.numel() for tensor in state.values()),
        "held_out": asdict(evaluate_tokenizer(rounded)),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(unmerged, args.out / "unmerged.safetensors")
    save_file(state, args.out / "tokenizer.safetensors")
    (args.out / "tokenizer.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
