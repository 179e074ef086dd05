"""Make a task of a model folder and data files: `from_pretrained`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from autocompress.errors import TaskError, nearest_name
from autocompress.huggingface.folder import ModelFolder, open_folder
from autocompress.huggingface.kinds.parts import Parts
from autocompress.huggingface.options import Options, checked_options
from autocompress.huggingface.out.files import digests
from autocompress.huggingface.typos import Typos
from autocompress.task.calls import Metric
from autocompress.task.task import Pretrained, Task

PACKAGE = "autocompress.huggingface.kinds"
# Name of the task -> the module that prepares it, with a function of the same name.
KINDS = {
    "audio-classification": "sound.audio_classification",
    "automatic-speech-recognition": "sound.automatic_speech_recognition",
    "feature-extraction": "text.embeddings",
    "fill-mask": "text.fill_mask",
    "image-classification": "vision.image_classification",
    "image-segmentation": "vision.image_segmentation",
    "image-text-to-text": "pairs.image_text_to_text",
    "image-to-text": "pairs.image_to_text",
    "object-detection": "vision.object_detection",
    "question-answering": "text.question_answering",
    "sentence-similarity": "text.embeddings",
    "text-classification": "text.text_classification",
    "text-generation": "text.text_generation",
    "text2text-generation": "text.text2text_generation",
    "token-classification": "text.token_classification",
    "visual-question-answering": "pairs.visual_question_answering",
    "zero-shot-image-classification": "pairs.zero_shot_image_classification",
}

# Tasks whose answer belongs to a whole text, so that it may have other tokens.
MISSPELT = (
    "feature-extraction",
    "sentence-similarity",
    "text-classification",
    "visual-question-answering",
)


def from_pretrained(
    folder: str,
    *,
    data: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    task: str | None = None,
    metric: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    batch: int = 1,
    length: int | Sequence[int] | None = None,
    fixed_length: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Task:
    """Return the task of a model folder, as `autocompress.from_pretrained` describes it.

    Args:
        folder: the model folder, or "hf://owner/name".
        data: training data.
        validation: validation split.
        test: test split.
        task: name of the task.
        metric: name, or list of names.
        columns: part of a sample -> column of the data.
        max_length: most tokens of a text.
        batch_size: samples of a batch of data; None takes 16, or fewer where outputs are large.
        batch: samples at which latency is measured.
        length: tokens at which latency is measured, or a list.
        fixed_length: tokens to which all texts are filled up and cut.
        samples: most samples of a split.
        seed: of all cuts and orders.
        trust_remote_code: run the code that the folder brings.

    Returns:
        The task.

    Raises:
        TaskError: folder, data or an option cannot be used.
    """
    values = {
        "data": data,
        "validation": validation,
        "test": test,
        "task": task,
        "max_length": max_length,
        "batch_size": batch_size,
        "batch": batch,
        "fixed_length": fixed_length,
        "samples": samples,
        "seed": seed,
        "trust_remote_code": trust_remote_code,
    }
    options = checked_options(folder, metric, columns, length, values)
    opened = open_folder(options)
    module = import_module(f"{PACKAGE}.{KINDS[opened.task]}")
    kind: Callable[[ModelFolder, Options], Parts]
    kind = getattr(module, KINDS[opened.task].rpartition(".")[2])
    parts = kind(opened, options)
    chosen = _metrics(opened, parts, options.metrics)
    first, *others = chosen
    misspelt = parts.tokenizer is not None and opened.task in MISSPELT
    own = () if parts.tokenizer is None else parts.tokenizer.all_special_ids
    special = tuple(sorted({*own, *parts.special}))
    vocabulary = getattr(parts.tokenizer, "vocab_files_names", {}).values()
    return Task(
        opened.name,
        parts.model,
        parts.example,
        parts.validation,
        chosen[first],
        loss=parts.loss,
        divergence=parts.divergence,
        train=parts.train,
        test=parts.test,
        towers=parts.towers,
        extra_metrics={other: chosen[other] for other in others},
        latency_inputs=parts.further,
        output_weights=parts.output_weights,
        batch_first=parts.batch_first,
        notes=(f"model folder: {opened.task}, accuracy is {first}", *parts.notes),
        typos=Typos(parts.tokenizer) if misspelt else None,
        pretrained=Pretrained(
            str(opened.path.resolve()), opened.task, first, special, digests(opened, vocabulary)
        ),
    )


def _metrics(folder: ModelFolder, parts: Parts, names: Sequence[str]) -> dict[str, Metric]:
    """Return the metrics that the user names, else all; the first one decides."""
    for name in names:
        if name not in parts.metrics:
            raise TaskError(
                f"{folder.name}: metric {name!r} is none of {folder.task} on these data "
                f"({', '.join(parts.metrics)}); nearest: {nearest_name(name, parts.metrics)}"
            )
    return {name: parts.metrics[name] for name in names or parts.metrics}
