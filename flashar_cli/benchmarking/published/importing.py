"""Importing a clone's code without a trace in this process."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from flashar_cli.errors import FlasharError

# What code of another version or layout raises when it is imported, built or loaded.
MISFITS = (ImportError, AttributeError, NameError, TypeError, ValueError, RuntimeError, KeyError, SyntaxError)


def import_code(code: Path, packages: Sequence[str], needed: Mapping[str, Sequence[str]]) -> list[ModuleType]:
    """Modules in a folder, by what is called of each. ``packages`` are the top-level names of the clone, folders or
    files; modules of these names are put back after the import, and what importing changes is undone.

    Raises FlasharError for code that can't be imported, needs what is not installed, or lacks what is called.
    """
    with unchanged_process(), _importing_from(code, packages):
        try:
            modules = [importlib.import_module(name) for name in needed]
        except ModuleNotFoundError as error:
            raise FlasharError(f"--upstream {code} needs the package {error.name}; install it") from None
        except MISFITS as error:
            raise FlasharError(f"--upstream {code} could not be imported: {one_line(error)}") from None
    for module, names in zip(modules, needed.values(), strict=True):
        for name in names:
            if not hasattr(module, name):
                raise FlasharError(f"--upstream {code} has no {name} in {module.__name__}; is it another version?")
    return modules


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
def _importing_from(code: Path, packages: Sequence[str]) -> Iterator[None]:
    """``import`` finds the clone's packages in the clone alone; modules of their names are back afterwards."""
    # On sys.path an installed package of the same name would win over a folder without __init__.py.
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}
    for name in hidden:
        del sys.modules[name]
    for name in packages:
        sys.modules[name] = _package(code, name)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _package(code: Path, name: str) -> ModuleType:
    """A folder as a package, of which nothing is run; or else a module of one file."""
    module = ModuleType(name)
    file = code / f"{name}.py"
    if file.is_file():
        module.__file__ = str(file)
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    else:
        module.__path__ = [str(code / name)]
    return module
