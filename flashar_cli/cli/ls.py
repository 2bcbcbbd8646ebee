"""`flashar ls`: which models there are."""

from __future__ import annotations

from flashar_cli.cli import options, output

EXAMPLES = "Examples:  flashar ls  |  flashar ls --json"


def command(json: options.Json = False) -> None:
    """List the models that can be named.

    The embedded ones, and published presets, which are fetched from the Hub at first use and kept in the cache.
    """
    from flashar_cli.reporting.listing import list_models, readable_count

    models = list_models()
    if json:
        output.document({"models": models})
        return
    rows = []
    for model in models:
        if "problem" in model:
            rows.append([model["name"], "broken", "", "", "", model["place"]])
            output.note(f"{model['name']}: {model['problem']}")
        else:
            facts = (model["condition"], model["grid"], model["structure"], readable_count(model["parameters"]))
            rows.append([model["name"], *facts, model["place"]])
    output.table("", ["model", "condition", "tokens", "structure", "weights", "place"], rows, to_stdout=True)
