"""`flashar ls`: which models there are."""

from __future__ import annotations

from flashar_cli.cli import options, output

EXAMPLES = "Examples:  flashar ls  |  flashar ls --json"


def command(json: options.Json = False) -> None:
    """List the models that can be named.

    The embedded ones, and published presets with where they are.
    """
    from flashar_cli.listing import list_models

    models = list_models()
    if json:
        output.document({"models": models})
        return
    rows = [[m["name"], m["summary"], m["parameters"], m["where"]] for m in models]
    output.table("", ["model", "what it is", "parameters", "where"], rows, to_stdout=True)
