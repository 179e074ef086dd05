"""Choose the files of a model folder that belong beside a model.onnx, and copy them.

No weights are among them. Hashes that were taken when the task was made tell what changed since.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from autocompress.huggingface.folder import CONFIG_FILE, MODULES_FILE, ModelFolder, sentence_modules
from autocompress.results.files import disk_error
from autocompress.task.task import Pretrained

GENERATION_FILE = "generation_config.json"
# Names of files in the folder of the weights.
CONFIGS = (CONFIG_FILE, GENERATION_FILE, "sentence_bert_config.json")
PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "normalizer.json",
    "target_vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
)
# Patterns in the model folder itself.
OF_FOLDER = (MODULES_FILE, "config_sentence_transformers.json", "LICENSE*", "NOTICE*")
CODE = "*.py"  # only where the user trusted it
MEND = "copy them there, or put the model folder back and export again"


def digests(folder: ModelFolder, vocabulary: Iterable[str] = ()) -> dict[str, str]:
    """Return the hash of each file that an export copies.

    Args:
        folder: the model folder.
        vocabulary: names of further files, which the class of the tokenizer reads.

    Returns:
        SHA-256 by name relative to the folder.
    """
    names = (*CONFIGS, *PROCESSORS, *TOKENIZERS, *vocabulary)
    places = [folder.weights / name for name in names]
    for pattern in (*OF_FOLDER, *[CODE] * folder.trust_remote_code):
        places += folder.path.glob(pattern)
    for entry in sentence_modules(folder.path):
        places.append(folder.path / str(entry.get("path", "")) / CONFIG_FILE)
    files = sorted({place for place in places if place.is_file()})
    return {file.relative_to(folder.path).as_posix(): _digest(file) for file in files}


def copy_files(known: Pretrained, to: Path) -> list[str]:
    """Copy the files of a model folder; those of an inner folder of weights lie in `to` itself.

    Args:
        known: the model folder, with the hashes of its files.
        to: a folder that exists.

    Returns:
        Lines on what is missing or changed; without one, all files are those of the search.

    Raises:
        RunFolderError: the files cannot be written.
    """
    folder, inner = Path(known.folder), inner_folder(known.files)
    missing, changed = [], []
    for name, digest in known.files.items():
        source = folder / name
        if not source.is_file():
            missing.append(name)
            continue
        if _digest(source) != digest:
            changed.append(name)
        place = to / (name.removeprefix(f"{inner}/") if inner else name)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
        except OSError as error:
            raise disk_error(place, error) from error
    lines = []
    if missing:
        gone = "" if folder.is_dir() else ", which is gone"
        names = ", ".join(missing)
        lines.append(f"{to}: lacks {names} of the model folder {folder}{gone}; nearest: {MEND}")
    if changed:
        names = ", ".join(changed)
        lines.append(f"{to}: {names} of {folder} changed since the search, so numbers may differ")
    return lines


def inner_folder(names: Collection[str]) -> str:
    """Return the folder of config and tokenizer in a model folder; "" if they lie in it.

    Older folders of sentence-transformers have "0_Transformer".

    Args:
        names: of files, relative to the model folder.
    """
    if CONFIG_FILE in names:
        return ""
    inner = [Path(name).parent for name in names if Path(name).name in TOKENIZERS]
    return inner[0].as_posix().removeprefix(".") if inner else ""


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
