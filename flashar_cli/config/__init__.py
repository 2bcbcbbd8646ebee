"""What a model is: the content of ``config.json``. No torch here."""

# ruff: noqa: F401 - the imports are this package's interface

from flashar_cli.config.backbone import BackboneConfig
from flashar_cli.config.base import Config, Count, Text, explain, validated
from flashar_cli.config.branch import GATES, BranchConfig, GateKind, default_gate_dim
from flashar_cli.config.model import (
    CONFIG_FILE,
    FLOAT_BYTES,
    FORMAT_VERSION,
    GridConfig,
    ModelConfig,
    Provenance,
    Subset,
    parse_config,
    read_config,
)
from flashar_cli.config.prefix import CaptionPrefix, ClassPrefix, Prefix, PrefixConfig, TextPrefix
from flashar_cli.config.sampling import Sampling
from flashar_cli.config.tokenizer import IBQConfig, ImageTokenizerConfig, TokenizerConfig, VQConfig
