"""The search through a codebook against all scores at once, and how much it holds in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashar_cli.tokenizers import codebook
from flashar_cli.tokenizers.codebook import Quantizer


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("scores", [1, 7 * 50, 10**6])
def test_the_search_is_that_over_all_scores_at_once(unit: bool, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "SEARCH_SCORES", scores)
    torch.manual_seed(0)
    quantizer, latent = Quantizer(50, 6, unit), torch.randn(2, 6, 3, 5)
    vectors = quantizer.embedding.weight.detach()
    if unit:
        vectors = vectors / vectors.square().sum(dim=1, keepdim=True).sqrt()
    expected = torch.einsum("bzhw,kz->bkhw", latent.double(), vectors.double()).argmax(dim=1)
    assert torch.equal(quantizer.search(latent), expected)
    torch.testing.assert_close(quantizer.lookup(expected), vectors[expected].permute(0, 3, 1, 2))


def test_a_large_image_and_codebook_never_meet_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = torch.Tensor.argmax
    monkeypatch.setattr(torch.Tensor, "argmax", lambda self, dim: sizes.append(self.numel()) or own(self, dim))

    def search(rows: int, size: int) -> Tensor:
        return Quantizer(size, 1, unit=False).search(torch.randn(1, 1, 1, rows))

    monkeypatch.setattr(codebook, "SEARCH_SCORES", 4096)
    assert search(64, 1024).shape == (1, 1, 64)
    assert max(sizes) == 4096 and sum(sizes) == 64 * 1024
    search(2, 8192)
    assert sizes[-2:] == [8192, 8192]
