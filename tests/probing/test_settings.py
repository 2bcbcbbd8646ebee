"""Which probes a model gets by default."""

from __future__ import annotations

from flashar_cli.cli.probe import ProbeOptions
from flashar_cli.families import PRESETS
from flashar_cli.probing.run import memory_bytes


def test_wide_vocabularies_share_the_models_head():
    emu, xl = PRESETS["emu3.5-image"].config(), PRESETS["llamagen-xl"].config()
    shared = ProbeOptions().settings(emu.backbone, 0)
    assert shared.head == "shared" and ProbeOptions().settings(xl.backbone, 0).head == "full"
    assert ProbeOptions(head="full").settings(emu.backbone, 0).head == "full"
    # Two neighbours on 65 states: weights, gradients and two moments of 5120 x 5120 numbers each.
    assert memory_bytes(emu, shared) == 2 * 65 * 5120 * 5120 * 16
