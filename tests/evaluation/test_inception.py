"""The Inception network with random weights: which of its values are taken, and what is missing is one line.

torch-fidelity needs a torchvision that belongs to this PyTorch; where that can't be imported, an empty one stands in,
as the Inception network does not use it.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.inception import SPATIAL_FEATURES, Inception


@pytest.fixture
def network_class(monkeypatch: pytest.MonkeyPatch):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
            module = types.ModuleType(f"torchvision{name}")
            for attribute in ("CIFAR10", "CIFAR100", "STL10"):
                setattr(module, attribute, object)
            monkeypatch.setitem(sys.modules, f"torchvision{name}", module)
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3


@pytest.fixture
def weights(network_class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the published layout with random weights."""
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(network_class, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *given, **named: {})
        network = network_class("random", ["2048"], "anything")
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_features_are_those_of_the_named_layers(weights: Path) -> None:
    """``mixed_6`` of TensorFlow is the fourth block of 17 x 17, of which the first branch is taken."""
    inception = Inception(weights, torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    network, seen = inception._network, {}
    for name in ("Mixed_6c", "Mixed_7c"):
        getattr(network, name).register_forward_hook(lambda module, given, out, name=name: seen.update({name: out}))
    pool, spatial = inception.features(images)
    assert pool.shape == (2, 2048) and spatial.shape == (2, SPATIAL_FEATURES) == (2, 2023)
    torch.testing.assert_close(pool, seen["Mixed_7c"].mean(dim=(2, 3)))
    with torch.no_grad():
        expected = network.Mixed_6d.branch1x1(seen["Mixed_6c"])
    assert expected.shape[2:] == (17, 17)
    torch.testing.assert_close(spatial.view(2, 17, 17, 7), expected[:, :7].permute(0, 2, 3, 1))
    weight = network.fc.weight
    torch.testing.assert_close(inception.logits(pool), pool @ weight.T)


def test_missing_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FlasharError, match="are not at .*; download weights-inception"):
        Inception(None, torch.device("cpu"))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(FlasharError):
        Inception(tmp_path / "evil.pth", torch.device("cpu"))


def test_without_torch_fidelity_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "weights.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(FlasharError, match=r"pip install 'flashar\[eval\]'"):
        Inception(tmp_path / "weights.pth", torch.device("cpu"))
