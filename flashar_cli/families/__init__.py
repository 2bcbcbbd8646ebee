"""Model families: presets and the table between upstream's names and ours. No torch here.

A family is a module with ``FAMILY``; adding one means adding its line to the registry.
"""

from __future__ import annotations

from flashar_cli.errors import FlasharError
from flashar_cli.families.base import Family, Preset
from flashar_cli.families.llamagen import LLAMAGEN, LLAMAGEN_FLASHAR
from flashar_cli.families.nar import NAR

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMAGEN, NAR, LLAMAGEN_FLASHAR)}
PRESETS: dict[str, Preset] = {preset.name: preset for family in FAMILIES.values() for preset in family.presets}


def get_family(name: str) -> Family:
    """Raises FlasharError for a name that is not registered."""
    if name not in FAMILIES:
        raise FlasharError(f"unknown family '{name}'; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
