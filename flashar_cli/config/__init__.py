"""What a model is: the content of ``config.json``. No torch here."""

# ruff: noqa: F401 - the imports are this package's interface

from flashar_cli.config.backbone import BackboneConfig
from flashar_cli.config.base import Config, Count, Text, explain, validated
from flashar_cli.config.branch import GATES, BranchConfig, GateKind, default_gate_dim
from flashar_cli.config.diffusion import DiffusionConfig
from flashar_cli.config.model import FLOAT_BYTES, GridConfig, Layout, ModelConfig, Provenance, Subset
from flashar_cli.config.next_scale import NextScaleConfig, ScaleTransformerConfig, SchedulesConfig
from flashar_cli.config.prefix import CaptionMemory, CaptionPrefix, ClassPrefix, Prefix, PrefixConfig, TextPrefix
from flashar_cli.config.pruning import Pruning
from flashar_cli.config.raster import RasterConfig
from flashar_cli.config.read import CONFIG_FILE, FORMAT_VERSION, parse_config, raster_only, read_config
from flashar_cli.config.sampling import Sampling
from flashar_cli.config.tokenizer import (
    AnyTokenizerConfig,
    BSQConfig,
    IBQConfig,
    ImageTokenizerConfig,
    MultiScaleVQConfig,
    ScaleTokenizerConfig,
    TokenizerConfig,
    VQConfig,
)
