"""The Inception network that published FIDs are measured with, from torch-fidelity.

Letters: B images; h, w pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.files.tensors import read_pickle
from flashar_cli.inputs.reading import reason

POOL_FEATURES = 2048
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17
SPATIAL_FEATURES = SPATIAL_CHANNELS * SPATIAL_SIDE**2
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"


class Inception:
    """Features of images as openai/guided-diffusion evaluations/evaluator.py takes them: ``pool_3``, and the first
    seven channels of ``mixed_6/conv``. Weights are those of the TensorFlow network of 2015, as torch-fidelity converts
    them.

    Raises FlasharError without torch-fidelity, and where the weights are neither given nor in PyTorch's cache.
    """

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
        if not path.is_file():
            raise FlasharError(
                f"the weights of the Inception network are not at {path}; download {WEIGHTS_FILE} from the releases of "
                "toshas/torch-fidelity and pass --inception FILE"
            )
        read_pickle(path)  # torch-fidelity reads whatever is there, code too
        self.device = device
        network = _network_class()("inception-v3-compat", ["2048"], str(path))
        self._network = network.to(device)
        self._spatial: list[Tensor] = []
        network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, found: self._spatial.append(found))

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """uint8 [B, h, w, 3] -> pooled float32 [B, 2048] and spatial float32 [B, 2023], on the device."""
        self._spatial.clear()
        channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(self.device)
        (pool,) = self._network(channels_first)
        spatial = self._spatial.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1)  # channels last, as in TensorFlow
        return pool, spatial.flatten(1).float()

    @torch.inference_mode()
    def logits(self, pool: Tensor) -> Tensor:
        """Pooled features [B, 2048] -> logits [B, 1008] without the bias, as the score takes them, on the CPU."""
        return pool.cpu() @ self._network.fc.weight.T.cpu()


def _network_class() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise FlasharError("FID needs torch-fidelity; install it: pip install 'flashar[eval]'") from None
    except RuntimeError as error:  # a torchvision of another build of PyTorch
        raise FlasharError(
            f"torch-fidelity can't be imported ({reason(error)}); install the torchvision that belongs to this PyTorch"
        ) from None
    return FeatureExtractorInceptionV3
