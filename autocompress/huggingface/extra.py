"""Import the libraries of the extra `huggingface`, and say how to install one that is missing."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from autocompress.errors import TaskError

OURS = "'autocompress[huggingface]'"


def library(module: str, needed_for: str, package: str = OURS) -> Any:
    """Return an imported library.

    Args:
        module: name of the module.
        needed_for: begins the error, such as "model folders".
        package: what pip installs.

    Returns:
        The module.

    Raises:
        TaskError: it is not installed; the line holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(
            f"{needed_for} need {module}, which cannot be imported ({error}); "
            f"nearest: pip install {package}"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print neither progress nor advice of transformers inside the block; errors are raised."""
    logging = library("transformers", "model folders").utils.logging
    level, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn any error of a library inside the block into one line.

    Args:
        what: how the line begins, such as "model: the weights cannot be read".

    Raises:
        TaskError: the library fails.
    """
    try:
        yield
    except (TaskError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        words = lines[0][:300] if lines else ""
        raise TaskError(f"{what}: {type(error).__name__}: {words}") from error
