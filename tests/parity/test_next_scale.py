"""Published outputs of next-scale models: VAR, Infinity, and FastVAR on Infinity."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.models.prefix import Conditions
from tests.parity.next_scale import ScaleFixture, read_fixture

TEACHER = ("var_small", "var_shared_aln_small", "infinity_small", "infinity_patchify_small")


@pytest.fixture(scope="module", params=TEACHER)
def fixture(request) -> ScaleFixture:
    return read_fixture(request.param)


@pytest.fixture(scope="module")
def model(fixture):
    return fixture.model()


def teacher_conditions(fixture: ScaleFixture) -> Conditions:
    if fixture.bits:
        return fixture.captions("square_", fixture.meta["runs"]["square"]["lens"])
    return Conditions(labels=fixture.tensors["teacher_labels"])


def test_teacher_forced_logits(fixture, model):
    latents, grid = fixture.tensors["teacher_input"], model.config.order_grid
    logits = model(latents, teacher_conditions(fixture), grid)
    torch.testing.assert_close(logits, fixture.tensors["teacher_logits"], atol=1e-4, rtol=0)


def test_weights_are_counted(fixture, model):
    assert model.config.num_weights == sum(parameter.numel() for parameter in model.parameters())
