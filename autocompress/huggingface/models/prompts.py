"""Read the prompt that sentence-transformers puts before each text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autocompress.errors import TaskError, nearest_name
from autocompress.huggingface.folder import CONFIG_FILE, sentence_modules
from autocompress.huggingface.models.sentence import read_settings

PROMPTS_FILE = "config_sentence_transformers.json"


def default_prompt(folder: Path) -> str:
    """Return the prompt that `SentenceTransformer.encode` puts before a text.

    Args:
        folder: the model folder, or an export of it.

    Returns:
        "" for none; a folder without modules.json is none of sentence-transformers.

    Raises:
        TaskError: the default is none of the prompts, or the pooling leaves prompts out.
    """
    file = folder / PROMPTS_FILE
    modules = sentence_modules(folder)
    settings = read_settings(file) if modules and file.is_file() else {}
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, Mapping) else None
    if not isinstance(prompt, str):
        names = [str(other) for other in prompts] if isinstance(prompts, Mapping) else []
        raise TaskError(
            f"{file}: default_prompt_name {name!r} is none of its prompts "
            f"({', '.join(names) or 'there are none'}); "
            f"nearest: {nearest_name(str(name), names) or 'null'}"
        )
    for entry in modules if prompt else ():
        config = folder / str(entry.get("path", "")) / CONFIG_FILE
        is_pooling = str(entry.get("type", "")).endswith("Pooling") and config.is_file()
        if is_pooling and read_settings(config).get("include_prompt") is False:
            raise TaskError(
                f"{config}: include_prompt false is not supported with the default prompt "
                f"{prompt!r}; nearest: true"
            )
    return prompt
