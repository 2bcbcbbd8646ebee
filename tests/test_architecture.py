"""Rules about the code itself: who may import whom, who may print, where a test stands, and what answers at once."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import flashar_cli

PACKAGE = Path(flashar_cli.__file__).parent
ROOT = PACKAGE.parent
# A folder, or a module that stands alone, imports only from itself and from those above it.
LAYERS = (
    "errors",
    "inputs",
    "grid",
    "config",
    "machine",
    "files",
    "nn",
    "models",
    "tokenizers",
    "families",
    "checkpoints",
    "decoding",
    "data",
    "training",
    "api",
    "reporting",
    "generation",
    "evaluation",
    "probing",
    "benchmarking",
    "adaptation",
    "cli",
    "__main__",
)
MOST_COMMAND_LINES = 60
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "huggingface_hub"}
# Tests of no single module or folder: the documentation, the action and the code as they stand, published outputs
# through the command line, runs that are killed, bad input to every command.
ACROSS = {
    "test_architecture.py",
    "test_bench_action.py",
    "test_readme.py",
    "test_survival.py",
    "parity",
    "input",
    "scales",
}
OPTIONAL = ("transformers", "datasets", "matplotlib", "tensorboard", "torchao", "tiktoken", "peft", "torch_fidelity")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "recipes" not in path.parts)


def name_of(path: Path) -> str:
    """``flashar_cli/nn/rope.py`` -> ``nn.rope``; a package's ``__init__`` has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(name: str) -> int | None:
    first = name.partition(".")[0]
    return LAYERS.index(first) if first in LAYERS else None


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every imported module in dotted form, wherever the import stands; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}; write it out"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not those of functions, nor under ``if TYPE_CHECKING``."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_module_imports_only_from_layers_above(path: Path) -> None:
    name = name_of(path)
    if not name:  # the package's own __init__ re-exports the API lazily
        return
    own = layer_of(name)
    assert own is not None, f"{name} is in no layer; add it to LAYERS"
    for imported in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
        if not imported.startswith("flashar_cli.") or imported == "flashar_cli.__version__":
            continue
        target = imported.removeprefix("flashar_cli.")
        layer = layer_of(target)
        assert layer is not None, f"{name} imports {target}, which is in no layer"
        assert layer <= own, f"{name} imports {target}, which is below it"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_output_prints(path: Path) -> None:
    if name_of(path) == "cli.output":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            streams = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
            # A stream that the caller hands in is the caller's business.
            handed_in = bool(streams) and not streams[0].startswith("sys.")
            assert node.func.id != "print" or handed_in, f"{path.name}:{node.lineno} prints; use cli/output.py"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=name_of)
def test_commands_import_heavy_packages_inside_functions(path: Path) -> None:
    for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            heavy = {name.partition(".")[0] for name in imported_names(node)} & HEAVY
            assert not heavy, f"{path.name}:{node.lineno} imports {heavy} at module level"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=name_of)
def test_commands_are_short(path: Path) -> None:
    """What a run is belongs below ``cli/``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "command" and node.end_lineno is not None:
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= MOST_COMMAND_LINES, f"{path.name}: command has {num_lines} lines"


@pytest.mark.parametrize(("argument", "shown", "most"), (("--help", "bench", 0.5), ("ls", "llamagen-tiny", 0.6)))
def test_what_needs_no_torch_answers_at_once(argument: str, shown: str, most: float) -> None:
    """In a part of the time that ``import torch`` alone takes. It is processor time, which others on the machine leave
    as it is, and a ratio, which holds on a slower one.
    """
    answers = []
    for _ in range(3):
        seconds, printed = processor_time("-m", "flashar_cli", argument)
        assert shown in printed
        answers.append(seconds)
    ratio = min(answers) / importing_torch_s()
    assert ratio < most, f"flashar {argument} took {min(answers):.2f} s, {ratio:.2f} times what importing torch takes"


@cache
def importing_torch_s() -> float:
    return min(processor_time("-c", "import torch")[0] for _ in range(2))


def processor_time(*arguments: str) -> tuple[float, str]:
    """Seconds of a Python process of its own, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_tests_mirror_the_package() -> None:
    """``tests/a/test_b.py`` is of ``flashar_cli/a/b.py`` or of the folder ``flashar_cli/a/b``; ``tests/benchmarks`` is
    of ``benchmarks`` and ``tests/scripts`` of ``scripts`` likewise.
    """
    strays = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        place = path.relative_to(ROOT / "tests")
        source = place.with_name(place.name.removeprefix("test_"))
        source = (ROOT if place.parts[0] in ("benchmarks", "scripts") else PACKAGE) / source
        if not ACROSS.intersection(place.parts) and not source.is_file() and not source.with_suffix("").is_dir():
            strays.append(f"{place}: there is no {source.relative_to(ROOT)}")
    assert not strays, "; ".join(strays)


def test_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, flashar_cli.cli.main; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_module_imports_without_optional_packages() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "import_all.py"), "--absent", *OPTIONAL]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert done.returncode == 0, done.stderr
