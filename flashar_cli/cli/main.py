"""The `flashar` command: one line per subcommand, and the one place where errors become exit codes."""

from __future__ import annotations

import signal
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer

from flashar_cli import __version__
from flashar_cli.cli import last_resort, output
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.text import plain, shown
from flashar_cli.training.signals import Terminated, raise_terminated

# Each command is a function of the module of its name; torch is imported inside it.
COMMANDS = ("ls", "inspect", "convert", "encode", "probe", "adapt", "generate", "eval", "bench", "compare")

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM
# Typer brings its own click or uses an installed one; either way this is its usage error.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="flashar",
    help="Turn a raster-scan autoregressive image model into a parallel one (FlashAR, arXiv 2605.09430), and decode "
    "next-scale models faster (FastVAR, arXiv 2503.23367).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name in COMMANDS:
    _module = import_module(f"flashar_cli.cli.{_name}")
    app.command(_name, epilog=_module.EXAMPLES)(_module.command)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        output.result(__version__)
        raise typer.Exit


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 a comparison failed, 2 bad input, 70 a bug, 130 interrupted, 141
    the reader of stdout left, 143 terminated with nothing to resume.
    """
    output.prepare()
    output.set_resume_command([])
    signal.signal(signal.SIGTERM, raise_terminated)  # an exception, so that nothing half-written stays behind
    with warnings.catch_warnings():
        warnings.showwarning = output.warning
        code = _run()
    sys.exit(code)


def _run() -> int:
    try:
        _refuse_unreadable(sys.argv[1:])
        code = app(standalone_mode=False) or 0
    except FlasharError as error:
        output.error(str(error))
        code = 2
    except output.NobodyReads:
        last_resort.give_up_stdout()
        code = last_resort.BROKEN_PIPE
    except OSError as error:  # an unreadable file or a full disk, which the user can mend
        place = f" ({error.filename})" if error.filename else ""
        output.error(f"{error.strerror or error}{place}; check the path, its permissions and the space left")
        code = 2
    except _UsageError as error:
        code = 2
        _explain_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Terminated:  # where the command can be resumed, nothing is lost
        code = 0 if output.resume_hint() else TERMINATED
        output.note("stopped by SIGTERM" + output.resume_hint())
    except Exception as error:
        if last_resort.wants_traceback():
            raise
        code = last_resort.explain(error)
    if code == INTERRUPTED:  # Typer may turn Ctrl-C into this exit code by itself
        output.error("interrupted" + output.resume_hint())
    return code


def _refuse_unreadable(arguments: list[str]) -> None:
    """Raises FlasharError for arguments that are not text: they could be neither printed nor stored."""
    for argument in arguments:
        if argument != plain(argument):
            encoding = sys.getfilesystemencoding()
            raise FlasharError(
                f"the argument {shown(argument)} is not valid {encoding}; rename the file, or choose another locale"
            )


def _explain_usage(error: Any) -> None:
    """One line for a mistyped command or option; the help text where nothing was typed."""
    if len(sys.argv) < 2:
        output.note(error.format_message())
        return
    command = error.ctx.command_path.split()[-1] if error.ctx else ""
    place = f"flashar {command}" if command in COMMANDS else "flashar"
    output.error(f"{error.format_message().rstrip('.')}; see `{place} --help`")


if __name__ == "__main__":
    main()
