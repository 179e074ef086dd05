"""Say the cause of what fails in an export."""

from __future__ import annotations

import torch

from autocompress.export.float_graph.export_errors import cause_of


def caught(function) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def test_an_error_names_the_users_line() -> None:
    def fails() -> None:
        raise ValueError("first line\n  second line")

    line = fails.__code__.co_firstlineno + 1
    assert cause_of(caught(fails)) == f"ValueError: first line (at test_export_errors.py:{line})"

    def silent() -> None:
        raise ValueError

    assert cause_of(caught(silent)).startswith("ValueError: no message (at test_export_errors.py:")


def test_behind_the_exporters_error_is_its_cause() -> None:
    class ExporterError(RuntimeError):
        pass

    ExporterError.__module__ = "torch.onnx._internal"

    def fails() -> None:
        try:
            torch.ones(2) @ torch.ones(3)
        except RuntimeError as error:
            raise ExporterError("failed to export") from error

    assert cause_of(caught(fails)).startswith("RuntimeError: inconsistent tensor size")

    def own() -> None:
        try:
            int("x")
        except ValueError as error:
            raise KeyError("mine") from error

    assert cause_of(caught(own)).startswith("KeyError: 'mine'"), "a user's own error is the cause"


def test_decisions_by_values_are_said_in_plain_words() -> None:
    class GuardOnDataDependentSymNode(RuntimeError):
        pass

    error = GuardOnDataDependentSymNode('Could not guard\n  File "/home/me/net.py", line 7, in f')
    assert cause_of(error) == (
        "it decides by the values of tensors (data-dependent), which no file can follow "
        "(at net.py:7); nearest: torch.where, or torch.cond"
    )
