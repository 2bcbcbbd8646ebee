"""The published LlamaGen sampler as an arm: imported from a local clone at run time, on the weights that are benched.

Letters: B images, H rows, W columns, N = H*W tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from flashar_cli.benchmarking.arms import Sampler, pixels_of
from flashar_cli.benchmarking.environment import git
from flashar_cli.benchmarking.report import UpstreamReport
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.decoding.decoder import choose_order, decode
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams

FAMILY = "llamagen"
CLONE = "a clone of github.com/FoundationVision/LlamaGen"
MODEL_FILE, SAMPLER_FILE = "autoregressive/models/gpt.py", "autoregressive/models/generate.py"
# Top-level names of the clone; installed packages of these names are put back after the import.
PACKAGES = ("autoregressive", "utils")
# What code of another version or layout raises when it is imported, built or loaded.
MISFITS = (ImportError, AttributeError, NameError, TypeError, ValueError, RuntimeError, KeyError, SyntaxError)


@dataclass
class Upstream:
    """The sampler of one clone. ``check`` and ``prepare`` build its model for the grid that the subject has then."""

    directory: Path
    gpt: ModuleType
    sampler: ModuleType
    _built: dict[str, Any] = field(default_factory=dict)

    def prepare(self, subject: BenchModel, conditions: Conditions, params: SamplingParams, seed: int) -> Sampler:
        """The arm at one batch size. Raises FlasharError for settings that upstream does not have."""
        model = self._model(subject.model)
        return Sampler(self._draw(model, subject.model.config, conditions, params, seed), pixels_of(subject), model)

    @torch.inference_mode(False)
    @torch.no_grad()
    def check(self, subject: BenchModel, conditions: Conditions, cfg_scale: float) -> UpstreamReport:
        """Decodes greedily with our raster decoder and with upstream's, and counts equal tokens."""
        greedy = SamplingParams(cfg_scale=cfg_scale, temperature=0.0)
        sampler = self.prepare(subject, conditions, greedy, seed=0)
        grid = subject.model.config.order_grid
        noise_BN = torch.zeros(len(conditions), grid.num_cells)
        ours = decode(subject.model, conditions, choose_order(subject.model, "raster"), greedy, noise_BN)
        theirs = sampler.draw(lambda: None)
        return UpstreamReport(
            commit=git(self.directory, "rev-parse", "HEAD") if (self.directory / ".git").exists() else None,
            files_sha256={
                name: hashlib.sha256((self.directory / name).read_bytes()).hexdigest()
                for name in (MODEL_FILE, SAMPLER_FILE)
            },
            num_tokens=ours.numel(),
            num_equal_tokens=int((ours == theirs).sum()),
        )

    def _model(self, model: FlasharModel) -> nn.Module:
        key = str(model.config.order_grid)
        if key not in self._built:
            self._built.clear()
            self._built[key] = _build(self.gpt, model)
        built: nn.Module = self._built[key]
        return built

    def _draw(
        self, model: nn.Module, config: ModelConfig, conditions: Conditions, params: SamplingParams, seed: int
    ) -> Callable[[Callable[[], None]], Tensor]:
        if params.cfg_scale < 1:
            raise FlasharError(
                f"--cfg-scale is {params.cfg_scale:g}, but upstream's sampler guides from 1 on; use >= 1"
            )
        grid = config.order_grid
        settings: dict[str, Any] = {
            "cfg_scale": params.cfg_scale,
            "temperature": params.temperature or 1.0,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "sample_logits": params.temperature > 0,
        }
        condition = conditions.labels
        if conditions.features is not None and conditions.mask is not None:
            mask = conditions.mask.to(model.tok_embeddings.weight)  # type: ignore[union-attr,arg-type]
            condition = conditions.features.to(mask) * mask[..., None]
            settings["emb_masks"] = mask
        devices = [condition.device] if condition is not None and condition.is_cuda else []

        @torch.inference_mode(False)
        @torch.no_grad()
        def draw(mark: Callable[[], None]) -> Tensor:
            def after_prefix(*_: object) -> None:
                handle.remove()
                mark()

            handle = model.register_forward_hook(after_prefix)
            with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
                # It calls what PyTorch has deprecated, at every step.
                warnings.simplefilter("ignore")
                torch.manual_seed(seed)
                tokens = self.sampler.generate(model, condition, grid.num_cells, **settings)
            return torch.as_tensor(tokens).long().reshape(-1, grid.height, grid.width)

        return draw


def load_upstream(directory: Path) -> Upstream:
    """Imports the clone's model and sampler, and undoes what importing them changes.

    Raises FlasharError where it is no such clone, or needs what is not installed.
    """
    for name in (MODEL_FILE, SAMPLER_FILE):
        if not (directory / name).is_file():
            raise FlasharError(f"--upstream is {directory}, which has no {name}; expected {CLONE}")
    with _unchanged_process(), _importing_from(directory):
        try:
            gpt = importlib.import_module("autoregressive.models.gpt")
            sampler = importlib.import_module("autoregressive.models.generate")
        except ModuleNotFoundError as error:
            raise FlasharError(f"--upstream {directory} needs the package {error.name}; install it") from None
        except MISFITS as error:
            raise FlasharError(f"--upstream {directory} could not be imported: {_line(error)}") from None
    for module, name in ((gpt, "ModelArgs"), (gpt, "Transformer"), (sampler, "generate")):
        if not hasattr(module, name):
            raise FlasharError(f"--upstream {directory} has no {name} in {module.__name__}; expected {CLONE}")
    return Upstream(directory, gpt, sampler)


def check_family(config: ModelConfig) -> None:
    """Raises FlasharError for a model that upstream's sampler can't run."""
    grid, backbone = config.order_grid, config.backbone
    if config.family != FAMILY:
        raise FlasharError(
            f"--upstream runs {FAMILY} models, this one is of family {config.family}; leave --upstream out"
        )
    if grid.height != grid.width:
        raise FlasharError(f"--upstream runs square grids, this one is {grid}; leave --upstream out")
    if backbone.head_dim * backbone.num_heads != backbone.dim:
        raise FlasharError("--upstream runs models whose heads share out the model's width, which this one's don't")


@torch.inference_mode(False)
def _build(gpt: ModuleType, model: FlasharModel) -> nn.Module:
    """Upstream's model around the very tensors of ours; the branch stays out."""
    check_family(model.config)
    config, backbone, prefix = model.config, model.config.backbone, model.config.prefix
    is_class = isinstance(prefix, ClassPrefix)
    settings = {
        "dim": backbone.dim,
        "n_layer": backbone.num_layers,
        "n_head": backbone.num_heads,
        "n_kv_head": backbone.num_kv_heads,
        # Upstream derives the width from these: any width below ffn_dim, rounded up to a multiple of it.
        "multiple_of": backbone.ffn_dim,
        "ffn_dim_multiplier": backbone.ffn_dim / math.floor(8 * backbone.dim / 3) / 2,
        "rope_base": backbone.rope_base,
        "norm_eps": backbone.norm_eps,
        "vocab_size": backbone.vocab_size,
        "block_size": config.order_grid.num_cells,
        "cls_token_num": prefix.length,
        "model_type": "c2i" if is_class else "t2i",
        **({"num_classes": prefix.num_classes} if isinstance(prefix, ClassPrefix) else {}),
        **({} if isinstance(prefix, ClassPrefix) else {"caption_dim": prefix.feature_dim}),
    }
    family = get_family(FAMILY)
    state = {
        family.to_upstream(name, backbone.num_layers): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("branch.")
    }
    try:
        with _unchanged_process(), torch.device(model.device):
            built: nn.Module = gpt.Transformer(gpt.ModelArgs(**settings))
        built.load_state_dict(state, assign=True)
    except MISFITS as error:
        raise FlasharError(f"--upstream is of another layout than {CLONE}: {_line(error)}") from None
    return built.eval()


@contextlib.contextmanager
def _importing_from(directory: Path) -> Iterator[None]:
    """``import`` looks into the clone first; installed modules of the same names are back afterwards."""
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES}
    path = list(sys.path)
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, str(directory.resolve()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        sys.modules.update(hidden)


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """Puts back what foreign code sets for the whole process; what it prints on stdout goes to stderr."""
    patched = {kind: kind.__dict__["reset_parameters"] for kind in (nn.Linear, nn.LayerNorm, nn.Embedding)}
    precision, num_threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    cudnn = torch.backends.cudnn
    flags = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for kind, method in patched.items():
            kind.reset_parameters = method  # type: ignore[method-assign]
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = flags


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
