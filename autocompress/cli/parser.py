"""Refuse wrong options in one line, without the usage text.

The line names the command, the option, what came and the nearest valid value. It is printed before
anything of the user is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from autocompress.errors import AutocompressError, nearest_name

WRONG_USAGE = 2  # exit code


class UsageError(AutocompressError):
    """Report options that are valid alone, but not together."""


def refuse(program: str, text: str) -> NoReturn:
    """Print one line on wrong usage and exit with code 2.

    Args:
        program: the command as typed, such as "autocompress search".
        text: names the option, what came and the nearest valid value.

    Raises:
        SystemExit: always.
    """
    line = " ".join(text.split())
    print(f"{program}: {line} (see {program} --help)", file=sys.stderr)
    sys.exit(WRONG_USAGE)


class Parser(argparse.ArgumentParser):
    """Parse the options of one command; wrong ones are refused in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2.

        Args:
            message: from argparse, "argument --option: reason" where it concerns an option.

        Raises:
            SystemExit: always.
        """
        text = message.removeprefix("argument ")
        name, _, reason = text.partition(": ")
        action = self._option_string_actions.get(name.split("/")[0])
        if action is not None and reason == "expected one argument":
            text = f"{name}: expected a value ({self._words(action)})"
        refuse(self.prog, text)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments, and refuse unknown ones by the command that they were given to.

        Args:
            args: arguments; None for those of the process.
            namespace: receives the values.

        Returns:
            The values, and an empty list.

        Raises:
            SystemExit: an argument is wrong.
        """
        values, rest = super().parse_known_args(args, namespace)
        for argument in rest:
            if argument.startswith("-"):
                option = argument.split("=")[0]
                near = nearest_name(option, self._option_string_actions)
                refuse(self.prog, f"unknown option {option}; nearest: {near}")
        if rest:
            refuse(self.prog, f"unexpected argument {rest[0]!r}")
        return values, []

    def _words(self, action: argparse.Action) -> str:
        """Return the valid values of an option, or its metavar."""
        return ", ".join(map(str, action.choices)) if action.choices else str(action.metavar)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError with the nearest choice, where argparse would list all of them."""
        if action.choices is None or value in action.choices:
            return
        near = nearest_name(str(value), map(str, action.choices))
        if action.dest == "command":
            raise argparse.ArgumentError(None, f"unknown command {value!r}; nearest: {near}")
        raise argparse.ArgumentError(action, f"{value!r} is unknown; nearest: {near}")
