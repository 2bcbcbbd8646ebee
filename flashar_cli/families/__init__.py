"""Model families. No torch here.

A family is a module with a subclass of ``Family``; adding one means adding its line to the registry.
"""

from __future__ import annotations

from flashar_cli.errors import FlasharError
from flashar_cli.families.base import Family, Preset
from flashar_cli.families.emu import EmuFlashAR, EmuImage
from flashar_cli.families.infinity import Infinity
from flashar_cli.families.janus import Janus
from flashar_cli.families.llamagen import LlamaGen
from flashar_cli.families.llamagen_flashar import LlamaGenFlashAR
from flashar_cli.families.nar import NAR
from flashar_cli.families.source import Source
from flashar_cli.families.var import VAR

_FAMILIES = (LlamaGen(), NAR(), LlamaGenFlashAR(), Janus(), EmuImage(), EmuFlashAR(), VAR(), Infinity())
FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
PRESETS: dict[str, Preset] = {preset.name: preset for family in FAMILIES.values() for preset in family.presets}


def get_family(name: str) -> Family:
    """Raises FlasharError for a name that is not registered."""
    if name not in FAMILIES:
        raise FlasharError(f"unknown family '{name}'; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_of(source: Source, wanted: str | None) -> Family:
    """The family of upstream files. Raises FlasharError where they belong to no family, or not to ``wanted``."""
    told = next((family for family in FAMILIES.values() if family.recognises(source)), None)
    if told is None:
        titles = dict.fromkeys(family.title for family in FAMILIES.values())
        hallmarks = dict.fromkeys(family.hallmark for family in FAMILIES.values())
        raise FlasharError(
            f"{source.path} is not a {' nor a '.join(titles)}: it has {len(source.state)} tensors such as "
            f"{', '.join(sorted(source.state)[:3])}; expected {', or '.join(hallmarks)}"
        )
    if wanted is None or wanted == told.name:
        return told
    family = get_family(wanted)
    if not family.recognises(source):
        raise FlasharError(
            f"{source.path} is {told.name} by its keys ({told.sign}), got --family {wanted}; leave --family out"
        )
    return family
