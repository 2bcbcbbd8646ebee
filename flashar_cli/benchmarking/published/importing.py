"""Importing a clone's code without a trace in this process."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from flashar_cli.errors import FlasharError

FILES = MODEL_FILE, SAMPLER_FILE = "autoregressive/models/gpt.py", "autoregressive/models/generate.py"
# Top-level names of a clone, folders without __init__.py; modules of these names are put back after the import.
PACKAGES = ("autoregressive", "utils")
# What code of another version or layout raises when it is imported, built or loaded.
MISFITS = (ImportError, AttributeError, NameError, TypeError, ValueError, RuntimeError, KeyError, SyntaxError)


def import_code(code: Path) -> tuple[ModuleType, ModuleType]:
    """The modules of FILES in a folder, without the sampler's progress bar. What importing them changes is undone.

    Raises FlasharError for code that can't be imported, needs what is not installed, or lacks what is called.
    """
    with unchanged_process(), _importing_from(code):
        try:
            gpt = importlib.import_module("autoregressive.models.gpt")
            sampler = importlib.import_module("autoregressive.models.generate")
        except ModuleNotFoundError as error:
            raise FlasharError(f"--upstream {code} needs the package {error.name}; install it") from None
        except MISFITS as error:
            raise FlasharError(f"--upstream {code} could not be imported: {one_line(error)}") from None
    for module, name in ((gpt, "ModelArgs"), (gpt, "Transformer"), (sampler, "generate")):
        if not hasattr(module, name):
            raise FlasharError(f"--upstream {code} has no {name} in {module.__name__}; is it another version?")
    if hasattr(sampler, "tqdm"):
        sampler.__dict__["tqdm"] = lambda iterable, *_, **__: iterable
    return gpt, sampler


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
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


def one_line(error: BaseException) -> str:
    """Kind and text of an error of foreign code."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextlib.contextmanager
def _importing_from(code: Path) -> Iterator[None]:
    """``import`` finds the clone's packages in the clone alone; modules of their names are back afterwards."""
    # On sys.path an installed package of the same name would win over a folder without __init__.py.
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES}
    for name in hidden:
        del sys.modules[name]
    for name in PACKAGES:
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(code / name)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        sys.modules.update(hidden)
