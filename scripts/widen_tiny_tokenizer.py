"""Makes the image tokenizer of emu-tiny out of a trained VQ tokenizer: python -m scripts.widen_tiny_tokenizer DIR OUT

DIR is what train_tiny_tokenizer.py --captioned wrote. Writes OUT/tokenizer.safetensors (float16) and tokenizer.json,
an IBQ tokenizer that gives the same tokens and images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers.vq import VQTokenizer
from scripts.tiny.tokenizer_training import load_trained_tokenizer, save_trained_tokenizer
from scripts.tiny.widening import widened


def main() -> None:
    parser = argparse.ArgumentParser(description="turn a trained VQ tokenizer into an equal IBQ tokenizer")
    parser.add_argument("tokenizer", type=Path, metavar="DIR", help="a folder of train_tiny_tokenizer.py")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write to")
    args = parser.parse_args()
    tokenizer = load_trained_tokenizer(args.tokenizer)
    if not isinstance(tokenizer, VQTokenizer):
        raise FlasharError(f"{args.tokenizer} has no VQ tokenizer; expected one that train_tiny_tokenizer.py wrote")
    facts = {"widened_from": json.loads((args.tokenizer / "tokenizer.json").read_text())["training"]}
    print(json.dumps(save_trained_tokenizer(args.out, widened(tokenizer), facts, captioned=True)))


if __name__ == "__main__":
    main()
