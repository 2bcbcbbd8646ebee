"""Foreign code comes in and leaves nothing behind; what keeps it out is one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flashar_cli.benchmarking.published import autoregressive, importing, var
from flashar_cli.errors import FlasharError
from tests.benchmarking.published.clones import write_clone

CODE = {
    "llamagen": (autoregressive.PACKAGES, autoregressive.NEEDED),
    "nar": (autoregressive.PACKAGES, autoregressive.NEEDED),
    "var": (var.PACKAGES, var.NEEDED),
}


def import_code(clone: Path, family: str = "llamagen") -> list[ModuleType]:
    return importing.import_code(clone, *CODE[family])


@pytest.mark.parametrize("family", CODE)
def test_import_leaves_no_trace(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method, path, names = torch.nn.Linear.reset_parameters, list(sys.path), set(sys.modules)
    threads, noise = torch.get_num_threads(), torch.get_rng_state()
    import_code(write_clone(tmp_path, family), family)
    assert torch.nn.Linear.reset_parameters is method
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), noise)
    assert sys.path == path
    assert not {
        name for name in set(sys.modules) - names if name.startswith(("autoregressive", "utils", "models", "dist"))
    }
    captured = capsys.readouterr()
    assert captured.out == "" and "talks" in captured.err


def test_packages_of_the_same_names_don_t_get_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with ``__init__.py`` would win over the clone's folder without one; imported already, it stays."""
    (tmp_path / "installed" / "utils").mkdir(parents=True)
    (tmp_path / "installed" / "utils" / "__init__.py").write_text("NAME = 'installed'")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    clone = write_clone(tmp_path / "clone")
    import_code(clone)
    assert "utils" not in sys.modules

    import utils

    try:
        assert utils.NAME == "installed"
        import_code(clone)
        assert sys.modules["utils"] is utils
    finally:
        del sys.modules["utils"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("import a_package_that_is_not_there", "needs the package a_package_that_is_not_there"),
        ("raise RuntimeError('too\\nold')", "RuntimeError: too old"),
        ("x = 1", "has no ModelArgs"),
    ],
)
def test_a_clone_that_does_not_import_is_one_line(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(FlasharError, match=message) as caught:
        import_code(write_clone(tmp_path, model=model))
    assert "\n" not in str(caught.value)
