"""`flashar inspect`: what a checkpoint is, and what is wrong with it."""

from __future__ import annotations

from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

EXAMPLES = "Examples:  flashar inspect llamagen-tiny-flashar  |  flashar inspect ./my-checkpoint --json"


def command(model: options.Model = None, base: options.Base = None, json: options.Json = False) -> None:
    """Say what a model is, and what is wrong with it.

    Shape, parameters, memory, hash, and every problem at once; exit code 2 if there is one.
    """
    from flashar_cli.checkpoints import hub

    directory = hub.resolve(options.required_model(model, base))

    from flashar_cli.reporting.listing import inspect, readable_count

    report = inspect(directory)
    if json:
        output.document(report)
    else:
        config = report["config"]
        width = f"{report['num_layers']} blocks of width {report['width']}, {report['num_heads']} heads"
        rows = [
            ["what", report["summary"]],
            ["path", report["path"]],
            ["parameters", f"{readable_count(report['parameters'])} ({width})"],
            ["memory", f"{report['weights_bytes_bfloat16'] / 2**20:.1f} MiB in bfloat16, twice that in float32"],
            ["cache", f"{report['kv_cache_bytes_per_image_bfloat16'] / 2**20:.2f} MiB an image and row in bfloat16"],
            ["forwards", ", ".join(f"{decoder} {count}" for decoder, count in report["forwards"].items())],
            ["tokenizer", report["tokenizer"] or "none: tokens only"],
            ["generation", ", ".join(f"{name} {value}" for name, value in config["generation"].items())],
            ["adapter", ", ".join(f"{name} {value}" for name, value in (report["adapter"] or {}).items()) or "none"],
            ["source", str(config["provenance"]["source"] or config["provenance"]["notes"] or "-")],
            ["sha256", report["sha256"]],
            ["problems", "; ".join(report["problems"]) or "none"],
        ]
        for name, value in rows:
            output.result(f"{name:<11} {value}")
    if report["problems"]:
        raise FlasharError(f"{report['path']} has problems: {'; '.join(report['problems'])}")
