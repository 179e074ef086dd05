"""Run command lines in forks of a process that has loaded the package, as `subprocess` runs them.

A program loads PyTorch for seconds before its first line. A fork begins behind that. What it does,
its output, its exit code and the signals that end it are those of the program. Programs that need
other threads of OpenMP are no forks: these are counted while PyTorch loads.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

from measuring import fewer_measurements

LOADED = ["autocompress.cli.main", "torch._functorch.aot_autograd", "plotly.graph_objects"]
LOADED += ["optuna.storages", "sqlalchemy.dialects.sqlite", "torch.optim"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(LOADED)


def _run(words: Sequence[str], environment: dict[str, str], paths: Sequence[str]) -> None:
    """Be `python WORDS`, with output and errors in two files."""
    for handle, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY), handle)
    for module, name, value in fewer_measurements():
        setattr(module, name, value)
    os.environ.clear()
    os.environ.update(environment)
    if words[:2] == ["-W", "ignore"]:
        warnings.simplefilter("ignore")
        words = words[2:]
    if words[0] == "-m":
        sys.argv = ["", *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [*words]
        runpy.run_path(words[0], run_name="__main__")


class Popen:
    """Run a command of this Python in a fork.

    Args:
        command: `sys.executable` and its arguments: perhaps "-W ignore", then a script or "-m" and
            a module.
    """

    def __init__(self, command: Sequence[str]) -> None:
        assert command[0] == sys.executable
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._files = [folder / name for name in ("output", "errors")]
        for file in self._files:
            file.touch()
        given = (list(command[1:]), dict(os.environ), [str(file) for file in self._files])
        self._process = FORKS.Process(target=_run, args=given, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return output and errors."""
        self.wait(timeout)
        output, errors = (file.read_text() for file in self._files)
        return output, errors


def run(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and stop it where it takes longer than `timeout` seconds."""
    process = Popen(command)
    try:
        output, errors = process.communicate(timeout)
    finally:
        if process.poll() is None:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
