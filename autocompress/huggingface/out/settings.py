"""Write the configs of an exported folder that differ from those of the model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autocompress.huggingface.folder import CONFIG_FILE, MODULES_FILE
from autocompress.huggingface.out.files import GENERATION_FILE
from autocompress.huggingface.out.snippets import DISABLED
from autocompress.results.files import write_json
from autocompress.targets.device.sessions import SessionSettings

ORT_FILE, OURS = "ort_config.json", "autocompress"
TOKENIZER_FILE = "tokenizer_config.json"
# Class of a tokenizer as transformers 5 writes it, and a name that transformers 4 knows too.
NEWER, KNOWN = "TokenizersBackend", "PreTrainedTokenizerFast"
INPUTS = ["input_ids", "attention_mask"]  # of the newer class; the older one adds token types
# Key of a list of special tokens without a name, as transformers 5 and both versions read it.
EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"


def write_ort_config(to: Path, settings: SessionSettings) -> None:
    """Write ort_config.json: what optimum's ORTConfig reads, and the tuned settings of sessions.

    ORTConfig passes over the entry "autocompress".

    Args:
        to: the exported folder.
        settings: how sessions are opened.

    Raises:
        RunFolderError: the file cannot be written.
    """
    ours: dict[str, Any] = {
        "runtime": settings.runtime,
        "providers": [settings.provider],
        "intra_op_num_threads": settings.threads,
    }
    if settings.runtime == "onnxruntime":
        entries = {"session.intra_op.allow_spinning": "1" if settings.spinning else "0"}
        if settings.disabled_optimizers:
            entries[DISABLED] = ";".join(settings.disabled_optimizers)
        ours["session_config_entries"] = entries
    data = {
        "opset": None,
        "use_external_data_format": False,
        "one_external_file": True,
        "optimization": {},
        "quantization": {},
        OURS: ours,
    }
    write_json(to / ORT_FILE, data)


def without_cache(to: Path) -> None:
    """Turn the cache of keys and values off in the configs of a language model.

    Args:
        to: the exported folder.

    Raises:
        RunFolderError: a file cannot be written.
    """
    for name in (CONFIG_FILE, GENERATION_FILE):
        config = read_object(to / name)
        if config:
            write_json(to / name, {**config, "use_cache": False})


def known_tokenizer(to: Path) -> None:
    """Name class, inputs and tokens of a tokenizer as transformers 4, which optimum needs, does.

    Args:
        to: the exported folder.

    Raises:
        RunFolderError: the file cannot be written.
    """
    written = config = read_object(to / TOKENIZER_FILE)
    if config.get("tokenizer_class") == NEWER:
        config = {"model_input_names": INPUTS, **config, "tokenizer_class": KNOWN}
    if isinstance(config.get(EXTRA), list):  # an object there names tokens, in both versions
        others = config.get(ADDITIONAL) or []
        more = [token for token in config[EXTRA] if token not in others]
        config = {key: value for key, value in config.items() if key != EXTRA}
        config[ADDITIONAL] = [*others, *more]
    if config != written:
        write_json(to / TOKENIZER_FILE, config)


def flat_modules(to: Path, inner: str) -> None:
    """Name the exported folder itself in modules.json, where the weights had a folder of their own.

    Args:
        to: the exported folder.
        inner: that folder; "" for none.

    Raises:
        RunFolderError: the file cannot be written.
    """
    path = to / MODULES_FILE
    if not inner or not path.is_file():
        return
    modules = json.loads(path.read_text())
    for entry in modules:
        if entry.get("path") == inner:
            entry["path"] = ""
    write_json(path, modules)


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Args:
        path: the file.

    Returns:
        An object; {} if there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
