"""The command line: one function per command, errors in one line."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

import optuna

from autocompress.cli.arguments import build_parser
from autocompress.cli.file_commands import bench_command, evaluate_command
from autocompress.cli.folder_commands import (
    export_command,
    front_command,
    report_command,
    reproduce_command,
)
from autocompress.cli.latency_commands import export_probes_command, profile_command
from autocompress.cli.search_commands import (
    INTERRUPTED,
    inspect_command,
    search_command,
    worker_command,
)
from autocompress.errors import AutocompressError
from autocompress.task.user_code import our_fault

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "search": search_command,
    "inspect": inspect_command,
    "profile": profile_command,
    "export-probes": export_probes_command,
    "front": front_command,
    "export": export_command,
    "bench": bench_command,
    "report": report_command,
    "reproduce": reproduce_command,
    "worker": worker_command,
    "evaluate": evaluate_command,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exits 0 when done, 1 with one line for our errors, 2 for wrong usage, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = build_parser().parse_args(argv)
    try:
        code = COMMANDS[arguments.command](arguments)
    except AutocompressError as error:
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(" ".join(str(error).split())))
    except OSError as error:  # a disk that is full or gone, wherever it is noticed
        if arguments.debug:
            traceback.print_exc()
        sys.exit(
            _fail(
                f"{error.filename or 'disk'}: {error.strerror or error}; what was written so far "
                f"is kept"
            )
        )
    except KeyboardInterrupt:
        print(
            "autocompress: stopped; everything found so far is saved, the same command goes on",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(our_fault(error)))
    sys.exit(code)


def _fail(text: str) -> int:
    print(f"autocompress: {text}", file=sys.stderr)
    return 1
