"""Load model, tokenizer and processors of a model folder, from the folder alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from autocompress.errors import TaskError
from autocompress.huggingface.extra import library, quiet, told
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.models.untrained import complete


def load_model(folder: ModelFolder, loader: str, **arguments: Any) -> nn.Module:
    """Return the model of a folder in eval mode, in float32.

    Pickled weights are read by `weights_only` loading, which runs no code of the file.

    Args:
        folder: the model folder.
        loader: the class of transformers that loads it, such as "AutoModelForMaskedLM".
        arguments: for the constructor of the model.

    Returns:
        The model.

    Raises:
        TaskError: weights that answers depend on are missing, damaged, or of another architecture.
    """
    transformers = library("transformers", "model folders")
    with quiet(), told(f"{folder.weights}: the model cannot be loaded"):
        model, report = getattr(transformers, loader).from_pretrained(
            folder.weights,
            config=folder.config,
            dtype=torch.float32,
            local_files_only=True,
            weights_only=True,
            trust_remote_code=folder.trust_remote_code,
            output_loading_info=True,
            **arguments,
        )
    missing = complete(model, report["missing_keys"])
    mismatched = sorted(name for name, *_ in report["mismatched_keys"])
    for names, words in ((missing, "lack"), (mismatched, "have another shape for")):
        if names:
            more = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise TaskError(
                f"{folder.weights}: the weights {words} {names[0]}{more} of "
                f"{type(model).__name__}; nearest: the folder of a model trained for {folder.task}"
            )
    loaded: nn.Module = model.eval()
    return loaded.requires_grad_(True)


def read_tokenizer(folder: ModelFolder) -> Any:
    """Return the tokenizer of a folder as it is.

    Args:
        folder: the model folder.

    Returns:
        The tokenizer.

    Raises:
        TaskError: the folder has none, or it cannot be read.
    """
    place = folder.weights
    found = [
        name for name in ("tokenizer.json", "tokenizer_config.json") if (place / name).exists()
    ]
    if not found and not any(place.glob("*vocab*")) and not any(place.glob("*.model")):
        raise TaskError(
            f"{place}: has no tokenizer (tokenizer.json); save it with "
            "tokenizer.save_pretrained(folder)"
        )
    transformers = library("transformers", "model folders")
    with quiet(), told(f"{place}: the tokenizer cannot be loaded"):
        return transformers.AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=folder.trust_remote_code
        )


def load_tokenizer(folder: ModelFolder, model: nn.Module) -> Any:
    """Return the tokenizer of a folder, which pads with the token that the model takes for padding.

    Some models, such as GPT-2 as a classifier, look for the padding token of their config to find
    where a text ends. Where the config names none, it is that of the tokenizer, else the end token
    if texts do not end with it.

    Args:
        folder: the model folder.
        model: its config learns the padding token, if it names none.

    Returns:
        The tokenizer.

    Raises:
        TaskError: the folder has none, it cannot be read, the model has no row for a token, or it
            reads no tokens under their usual name.
    """
    if "inputs" in inspect.signature(model.forward).parameters:  # texts and media alike
        raise TaskError(
            f"{folder.path}: models of {folder.config.model_type} read texts as inputs, not as "
            "input_ids, which files and other libraries expect; nearest: a model such as bert"
        )
    tokenizer = read_tokenizer(folder)
    words = table_size(folder, model)
    _set_padding(folder, tokenizer, model.config)
    used = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    used += [tokenizer.mask_token_id] if folder.task == "fill-mask" else []
    tokens = [token for token in used if token is not None]
    check_tokens(str(folder.weights), tokenizer, words, tokens, "the task needs")
    return tokenizer


def table_size(folder: ModelFolder, model: nn.Module) -> int:
    """Return the number of tokens that a model has a row for.

    Args:
        folder: of the model.
        model: with a table of tokens.

    Returns:
        Rows of the table.

    Raises:
        TaskError: there is no such table.
    """
    with told(f"{folder.weights}: {type(model).__name__} has no table of tokens"):
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
        return int(table.weight.shape[0])


def check_tokens(place: str, tokenizer: Any, words: int, tokens: Iterable[int], where: str) -> None:
    """Refuse tokens that the model has no row for; a tokenizer may know others that nothing uses.

    Args:
        place: the model folder.
        tokenizer: of the folder.
        words: tokens of the model.
        tokens: that are used.
        where: what uses them, for the error.

    Raises:
        TaskError: a token is above the table.
    """
    last = max(tokens, default=0)
    if last >= words:
        raise TaskError(
            f"{place}: the tokenizer has {len(tokenizer)} tokens, the model {words}, and {where} "
            f"{tokenizer.convert_ids_to_tokens(last)!r}, token {last}; nearest: the tokenizer that "
            "the model was trained with"
        )


def _set_padding(folder: ModelFolder, tokenizer: Any, config: Any) -> None:
    """Agree on the padding token: that of the config, else that of the tokenizer, else its end."""
    padding = getattr(config, "pad_token_id", None)
    if type(padding) is int and 0 <= padding < len(tokenizer):
        if padding != tokenizer.pad_token_id:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
        return
    if tokenizer.pad_token_id is None:
        # A model that looks for padding must not take the end of a text for it.
        last = tokenizer("a")["input_ids"][-1:]
        names = ("eos_token", "bos_token", "cls_token", "mask_token")
        tokens = [getattr(tokenizer, name) for name in names if getattr(tokenizer, name)]
        fitting = [t for t in tokens if [tokenizer.convert_tokens_to_ids(t)] != last]
        if not tokens:
            raise TaskError(
                f"{folder.weights}: the tokenizer has neither a padding nor an end token; set "
                "pad_token in tokenizer_config.json"
            )
        tokenizer.pad_token = [*fitting, *tokens][0]
    config.pad_token_id = tokenizer.pad_token_id


def load_processor(folder: ModelFolder, loader: str, what: str) -> Any:
    """Return a processor of images or sound.

    Args:
        folder: the model folder.
        loader: the class of transformers that loads it.
        what: its name in the error.

    Returns:
        The processor.

    Raises:
        TaskError: the folder has none, or it cannot be read.
    """
    place = folder.weights
    files = ("preprocessor_config.json", "processor_config.json")
    if not any((place / name).exists() for name in files):
        raise TaskError(
            f"{place}: has no {what} (preprocessor_config.json); save it with "
            "processor.save_pretrained(folder)"
        )
    transformers = library("transformers", "model folders")
    with quiet(), told(f"{place}: the {what} cannot be loaded"):
        return getattr(transformers, loader).from_pretrained(
            place, local_files_only=True, trust_remote_code=folder.trust_remote_code
        )


def load_pictures_and_text(folder: ModelFolder) -> Any:
    """Return the processor of a folder that joins pictures with texts.

    Args:
        folder: the model folder.

    Returns:
        The processor. Its part for videos is left out where torchvision, which only that part
        needs, is not installed.

    Raises:
        TaskError: the folder has none, or it cannot be read.
    """
    transformers = library("transformers", "model folders")
    where = f"{folder.weights}: the processor of pictures and texts cannot be loaded"
    local = {"local_files_only": True, "trust_remote_code": folder.trust_remote_code}
    with quiet(), told(where):
        try:
            return transformers.AutoProcessor.from_pretrained(folder.weights, **local)
        except ImportError:
            return _without_videos(folder, transformers, local)


def _without_videos(folder: ModelFolder, transformers: Any, local: dict[str, Any]) -> Any:
    """Return the processor of a folder without its part for videos."""
    names = library("transformers.models.auto.processing_auto", "model folders")
    made = getattr(transformers, names.PROCESSOR_MAPPING_NAMES[folder.config.model_type])
    images = transformers.AutoImageProcessor.from_pretrained(folder.weights, **local)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.weights, **local)
    settings, file = {}, folder.weights / "processor_config.json"
    if file.is_file():
        length = json.loads(file.read_text()).get("image_seq_len")
        settings = {} if length is None else {"image_seq_len": length}
    # The class checks that each part is there.
    unchecked = {"check_argument_for_proper_class": lambda self, name, part: type(part)}
    pictures_only = type(made.__name__, (made,), unchecked)
    return pictures_only(images, tokenizer, None, chat_template=tokenizer.chat_template, **settings)
