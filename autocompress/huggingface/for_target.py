"""Check that a target takes a model folder, before its data are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autocompress.export.genai.source import check_folder_kind
from autocompress.huggingface.folder import open_folder
from autocompress.huggingface.options import Options
from autocompress.targets.target import Target
from autocompress.task.source import is_model_folder


def check_target(spec: str, arguments: Mapping[str, Any], target: Target) -> None:
    """Check that a target takes what a text names, as far as its config tells.

    Args:
        spec: what `load_task` takes; nothing is checked if it is no model folder.
        arguments: for `load_task`.
        target: the runtime.

    Raises:
        ExportError: it does not.
        TaskError: the folder has no config that can be read.
    """
    if not target.decoder or not is_model_folder(spec):
        return
    trust = bool(arguments.get("trust_remote_code"))
    opened = open_folder(Options(spec, task=arguments.get("task"), trust_remote_code=trust))
    config = {**opened.config.to_dict(), "architectures": [opened.architecture]}
    if not opened.architecture:
        del config["architectures"]
    check_folder_kind(target, opened.task, config)
