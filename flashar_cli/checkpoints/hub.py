"""Where MODEL comes from: a checkpoint directory, the embedded default, the local cache, or the Hugging Face Hub.

No torch is imported before a preset has been downloaded: `flashar ls` answers at once, and so does an unknown name.
"""

from __future__ import annotations

import difflib
import errno
import os
from pathlib import Path

from flashar_cli.config import CONFIG_FILE, read_config
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS, get_family
from flashar_cli.families.base import HubFiles, Preset
from flashar_cli.machine.network import hub_unreachable

ASSETS = Path(__file__).parents[1] / "assets"
EMBEDDED = ("llamagen-tiny", "llamagen-tiny-flashar", "emu-tiny", "emu-tiny-flashar", "var-tiny")


def cache_dir() -> Path:
    """Where converted presets are kept: $FLASHAR_HOME, else flashar/ beside the Hub's own cache."""
    if home := os.environ.get("FLASHAR_HOME"):
        return Path(home).expanduser()
    hub_home = os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(hub_home).expanduser() / "flashar"


def local_path(name: str) -> Path | None:
    """The checkpoint directory of MODEL where it is on this machine already, else None."""
    for path in (Path(name), ASSETS / name, cache_dir() / name):
        if (path / CONFIG_FILE).is_file():
            return path
    return None


def place_of(directory: Path) -> str:
    """Where a checkpoint is: ``embedded`` in this package, in its ``cache``, or, the user's own, ``here``."""
    resolved = directory.resolve()
    owned = {"embedded": ASSETS, "cache": cache_dir()}
    return next((place for place, root in owned.items() if resolved.is_relative_to(root.resolve())), "here")


def resolve(name: str) -> Path:
    """The checkpoint directory of MODEL; a published preset is downloaded and converted once.

    Raises FlasharError for a name that stands for no model, and where the Hub can't be reached.
    """
    found = local_path(name)
    if found is not None:
        return found
    if name in PRESETS:
        return _download(PRESETS[name])
    if Path(name).exists():
        read_config(Path(name))
        if Path(name).is_file():
            raise FlasharError(f"{name} is a file; import it first: flashar convert {name} --out DIR")
    known = [*EMBEDDED, *PRESETS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected a checkpoint directory or one of {', '.join(known)}"
    raise FlasharError(f"there is no model '{name}'; {hint}")


def _download(preset: Preset) -> Path:
    weights = _fetch(preset, preset.weights)
    tokenizer = _fetch(preset, preset.tokenizer_weights) if preset.tokenizer_weights else None

    from flashar_cli.checkpoints.convert import convert
    from flashar_cli.families import Source

    target = cache_dir() / preset.name
    new = convert(weights, get_family(preset.family).options(preset), tokenizer)
    if Source(weights).is_pickle:
        new.save(target, overwrite=True)
    else:  # the Hub's cache has these files anyway
        new.link(target, overwrite=True)
    return target


def _fetch(preset: Preset, files: HubFiles) -> Path:
    """The path of the published file, or of a directory with all of them."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    offline = hub_unreachable()
    try:
        if files.single is not None:
            return Path(hf_hub_download(files.repo, files.single, local_files_only=offline))
        root = snapshot_download(files.repo, allow_patterns=list(files.files), local_files_only=offline)
        return Path(root) / files.folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise  # the disk's fault, not the network's
        missing = isinstance(error, EntryNotFoundError | HfHubHTTPError) and not isinstance(
            error, LocalEntryNotFoundError
        )
        what = (
            f"the Hub has no {files}" if missing else f"{files} is not in the local cache and the Hub can't be reached"
        )
        raise FlasharError(f"{what}; {_by_hand(preset)}") from None


def _by_hand(preset: Preset) -> str:
    """What to do without the Hub."""
    parts = [preset.weights] + ([preset.tokenizer_weights] if preset.tokenizer_weights else [])
    arguments = " --tokenizer ".join(Path(str(part)).name for part in parts)
    return (
        f"download {' and '.join(map(str, parts))} elsewhere, then run `flashar convert {arguments} "
        f"--out {cache_dir() / preset.name}`; or use llamagen-tiny, which needs no network"
    )
