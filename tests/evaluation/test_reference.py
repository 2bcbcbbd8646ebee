"""References of generation are read; those of reconstruction, and damaged ones, are refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.evaluation import reference
from flashar_cli.evaluation.reference import read_reference

POOL, SPATIAL = 6, 4


@pytest.fixture(autouse=True)
def _few_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "POOL_FEATURES", POOL)
    monkeypatch.setattr(reference, "SPATIAL_FEATURES", SPATIAL)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, POOL)), rng.standard_normal((50, SPATIAL))
    return {
        "arr_0": rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8),
        "mu": rows[0].mean(axis=0),
        "sigma": np.cov(rows[0], rowvar=False),
        "mu_s": rows[1].mean(axis=0),
        "sigma_s": np.cov(rows[1], rowvar=False),
    }


@pytest.mark.parametrize("save", (np.savez, np.savez_compressed))
def test_what_it_holds(tmp_path: Path, save) -> None:
    written = arrays()
    save(tmp_path / "ref.npz", **written)
    found = read_reference(tmp_path / "ref.npz")
    np.testing.assert_allclose(found.pool.mean, written["mu"])
    np.testing.assert_allclose(found.pool.covariance, written["sigma"])
    np.testing.assert_allclose(found.spatial.covariance, written["sigma_s"])
    assert np.array_equal(np.concatenate(list(found.images.batches(2))), written["arr_0"])


def without(*names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays().items() if name not in names}


@pytest.mark.parametrize(
    ("content", "words"),
    (
        (without("mu", "sigma", "mu_s", "sigma_s"), "holds images alone, as references of reconstructions do"),
        (without("mu_s"), "lacks mu_s"),
        (without("arr_0"), "lacks arr_0"),
        ({**arrays(), "arr_0": np.zeros((5, 8, 8), np.uint8)}, r"arr_0 of uint8 \(5, 8, 8\)"),
        ({**arrays(), "arr_0": np.zeros((5, 8, 8, 3), np.float32)}, "arr_0 of float32"),
        ({**arrays(), "mu": np.zeros(POOL + 1)}, r"mu of float64 \(7,\); expected floats \(6,\)"),
        ({**arrays(), "sigma": np.full((POOL, POOL), np.nan)}, "not finite"),
        ({**arrays(), "mu": np.array([object()] * POOL)}, "mu of .* is object"),
    ),
)
def test_others_are_refused(tmp_path: Path, content: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "ref.npz", allow_pickle=True, **content)
    with pytest.raises(FlasharError, match=words):
        read_reference(tmp_path / "ref.npz")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "ref.npz", **arrays())
    whole = (tmp_path / "ref.npz").read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(FlasharError, match=r"--reference .*cut.npz"):
            read_reference(tmp_path / "cut.npz")
    with pytest.raises(FlasharError, match="does not exist"):
        read_reference(tmp_path / "none.npz")
