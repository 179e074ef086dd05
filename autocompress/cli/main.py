"""Run one command of the command line and turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import optuna

from autocompress.cli.arguments import build_parser, completion_command
from autocompress.cli.file_commands import bench_command, evaluate_command
from autocompress.cli.folder_commands import (
    export_command,
    front_command,
    report_command,
    reproduce_command,
)
from autocompress.cli.latency_commands import export_probes_command, profile_command
from autocompress.cli.parser import UsageError, refuse
from autocompress.cli.search_commands import (
    INTERRUPTED,
    inspect_command,
    search_command,
    worker_command,
)
from autocompress.errors import AutocompressError
from autocompress.targets.device.sessions import ProviderError
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
    "completion": completion_command,
}

# What Ctrl-C leaves: these commands save each result at once.
SAVING = ("search", "worker")
KEPT = "all results so far are saved, and the same command continues"
PIPE = 128 + 13  # exit code of a program that SIGPIPE ends
LOST = "nothing was finished, and the same command begins anew"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    Exit codes: 0 when done, 1 with one line for an error, 2 for wrong usage, 130 after Ctrl-C.

    Args:
        argv: arguments without the program's name; None for those of the process.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = build_parser().parse_args(argv)
    try:
        code = COMMANDS[arguments.command](arguments)
        sys.stdout.flush()  # at exit nobody would catch its error
    except UsageError as error:
        refuse(f"autocompress {arguments.command}", str(error))
    except (AutocompressError, ProviderError) as error:
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(" ".join(str(error).split())))
    except BrokenPipeError:  # the reader of the output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE)
    except OSError as error:  # a full or missing disk, wherever it is noticed
        if arguments.debug:
            traceback.print_exc()
        sys.exit(
            _fail(
                f"{error.filename or 'disk'}: {error.strerror or error}; files written so far are "
                "kept"
            )
        )
    except KeyboardInterrupt:
        kept = KEPT if arguments.command in SAVING else LOST
        print(f"autocompress: stopped; {kept}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(our_fault(error)))
    sys.exit(code)


def _fail(text: str) -> int:
    print(f"autocompress: {text}", file=sys.stderr)
    return 1
