"""Imports every module of flashar_cli; with --absent, as if the named packages were not installed.

python scripts/import_all.py --absent transformers datasets matplotlib
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys


def main() -> None:
    """Exits with code 1 and one line per module that could not be imported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--absent", nargs="*", default=[], metavar="PACKAGE", help="packages that must not be needed")
    for package in parser.parse_args().absent:
        sys.modules[package] = None  # type: ignore[assignment]  # makes `import package` fail

    import flashar_cli

    names = [module.name for module in pkgutil.walk_packages(flashar_cli.__path__, "flashar_cli.")]
    failures = []
    for name in names:
        if name == "flashar_cli.__main__":  # runs the command line
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            failures.append(f"{name}: {error}")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{len(names) - len(failures)} of {len(names)} modules import", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
