"""Open a model folder: its config, and the task that its architecture is made for."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import TaskError, nearest_name
from autocompress.huggingface.extra import library, quiet, told
from autocompress.huggingface.options import Options
from autocompress.task.source import HUB

CONFIG_FILE, MODULES_FILE = "config.json", "modules.json"
AUTO = "transformers.models.auto.modeling_auto"
# Name of the task -> its classes, or the tables of transformers that list them. An architecture of
# several tasks has the one that comes first.
TASKS = {
    "audio-classification": ("AUDIO_CLASSIFICATION",),
    "automatic-speech-recognition": ("CTC", "WhisperForConditionalGeneration"),
    "image-classification": ("IMAGE_CLASSIFICATION",),
    "image-segmentation": ("SEMANTIC_SEGMENTATION",),
    "object-detection": ("OBJECT_DETECTION",),
    "image-to-text": ("VisionEncoderDecoderModel",),
    "image-text-to-text": (
        *("LlavaForConditionalGeneration", "Idefics3ForConditionalGeneration"),
        *("SmolVLMForConditionalGeneration", "Gemma3ForConditionalGeneration"),
        *("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    ),
    "visual-question-answering": ("ViltForQuestionAnswering",),
    "text-classification": ("SEQUENCE_CLASSIFICATION",),
    "token-classification": ("TOKEN_CLASSIFICATION",),
    "question-answering": ("QUESTION_ANSWERING",),
    "text2text-generation": ("SEQ_TO_SEQ_CAUSAL_LM",),
    "text-generation": ("CAUSAL_LM",),
    "fill-mask": ("MASKED_LM",),
    "zero-shot-image-classification": ("ZERO_SHOT_IMAGE_CLASSIFICATION",),
}
EMBEDDINGS = ("feature-extraction", "sentence-similarity")  # of texts, by models without a head
# Arguments of models that read something else than texts, alone or beside them.
OTHER_INPUTS = frozenset(
    {"pixel_values", "input_features", "input_values", "visual_feats", "past_values"}
)
NAMES = (*TASKS, *EMBEDDINGS)
# Tables of architectures that cannot be searched yet, for the error.
NOT_YET = {
    "automatic-speech-recognition": "SPEECH_SEQ_2_SEQ",
    "image-segmentation of objects": "UNIVERSAL_SEGMENTATION",
    "visual-question-answering": "VISUAL_QUESTION_ANSWERING",
    "image-text-to-text": "IMAGE_TEXT_TO_TEXT",
    "multiple-choice": "MULTIPLE_CHOICE",
    "next-sentence-prediction": "NEXT_SENTENCE_PREDICTION",
    "table-question-answering": "TABLE_QUESTION_ANSWERING",
    "document-question-answering": "DOCUMENT_QUESTION_ANSWERING",
    "depth-estimation": "DEPTH_ESTIMATION",
    "keypoint-detection": "KEYPOINT_DETECTION",
    "mask-generation": "MASK_GENERATION",
    "zero-shot-object-detection": "ZERO_SHOT_OBJECT_DETECTION",
    "video-classification": "VIDEO_CLASSIFICATION",
    "audio-xvector": "AUDIO_XVECTOR",
    "audio-frame-classification": "AUDIO_FRAME_CLASSIFICATION",
    "text-to-audio": "TEXT_TO_WAVEFORM",
    "time-series-prediction": "TIME_SERIES_PREDICTION",
    "time-series-classification": "TIME_SERIES_CLASSIFICATION",
    "time-series-regression": "TIME_SERIES_REGRESSION",
}
# Families that torch.onnx cannot export with free lengths, and one that is near. XLNet subtracts
# its mask of whole numbers from 1.0. Longformer and LED count the tokens that all others look at.
# CANINE and Reformer loop over blocks of a text. Funnel pools odd and even lengths in other ways.
# The last four loop over the experts that the tokens of a batch chose.
NO_EXPORT = {
    **{"xlnet": "bert", "longformer": "modernbert", "led": "bart", "canine": "bert"},
    **{"reformer": "bert", "funnel": "bert", "switch_transformers": "t5", "nllb-moe": "m2m_100"},
    **{"dbrx": "mixtral", "longcat_flash": "deepseek_v3"},
}


@dataclass(frozen=True)
class ModelFolder:
    """Describe a model folder.

    Attributes:
        path: the folder.
        weights: the folder of config and weights; another one only in older folders of
            sentence-transformers.
        config: of the model.
        architecture: name of the class that wrote the folder, or "" if the config names none.
        task: name of the task.
        trust_remote_code: run the code that the folder brings.
    """

    path: Path
    weights: Path
    config: Any
    architecture: str
    task: str
    trust_remote_code: bool

    @property
    def name(self) -> str:
        """Return the name of the folder, for messages and for the task."""
        return self.path.name


def open_folder(options: Options) -> ModelFolder:
    """Read the config of a model folder.

    Args:
        options: name the folder, and the task if it is not that of the architecture.

    Returns:
        The folder.

    Raises:
        TaskError: there is no such folder or config, or the task is unknown or not possible.
    """
    if options.task is not None and options.task not in NAMES:
        near = nearest_name(options.task, NAMES)
        raise TaskError(f"task {options.task!r} is unknown; nearest: {near}")
    path = _local(options.folder)
    if not path.is_dir():
        siblings = []
        if path.parent.is_dir():
            siblings = [other.name for other in path.parent.iterdir() if other.is_dir()]
        near = nearest_name(path.name, siblings) or "none"
        raise TaskError(f"{options.folder}: no such model folder; nearest: {near}")
    weights = path / _inner(path)
    if not (weights / CONFIG_FILE).is_file():
        raise TaskError(
            f"{weights}: has no {CONFIG_FILE}; expected a folder that save_pretrained wrote"
        )
    transformers = library("transformers", "model folders")
    with quiet(), told(f"{weights / CONFIG_FILE}: cannot be read"):
        config = transformers.AutoConfig.from_pretrained(
            weights, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
    if config.model_type in NO_EXPORT:
        near = NO_EXPORT[config.model_type]
        raise TaskError(
            f"{path}: models of {config.model_type} cannot be exported to ONNX; nearest: {near}"
        )
    architecture = ((config.architectures or [""])[0]) or ""
    task = _task_of(path, architecture, options.task)
    return ModelFolder(path, weights, config, architecture, task, options.trust_remote_code)


def _local(folder: str) -> Path:
    """Return the local folder of a name; only hf://owner/name is fetched."""
    if not folder.startswith(HUB):
        return Path(folder)
    hub = library("huggingface_hub", "model folders")
    with told(f"{folder}: cannot be fetched from the hub"):
        return Path(hub.snapshot_download(folder.removeprefix(HUB)))


def _inner(path: Path) -> str:
    """Return the folder of the weights inside of a folder of sentence-transformers; "" for none."""
    for module in sentence_modules(path):
        if str(module.get("type", "")).endswith("Transformer"):
            return str(module.get("path", ""))
    return ""


def sentence_modules(path: Path) -> list[dict[str, Any]]:
    """Return the entries of modules.json, which sentence-transformers writes.

    Args:
        path: the model folder.

    Returns:
        Mappings with "type" and "path"; none without the file.

    Raises:
        TaskError: the file cannot be read.
    """
    file = path / MODULES_FILE
    if not file.is_file():
        return []
    with told(f"{file}: cannot be read"):
        modules = json.loads(file.read_text())
    if not isinstance(modules, list) or not all(isinstance(entry, dict) for entry in modules):
        raise TaskError(f"{file}: expected a list of modules with type and path")
    return modules


def _task_of(path: Path, architecture: str, asked: str | None) -> str:
    """Return the task of an architecture, or raise a TaskError that names those it can have."""
    sentence = bool(sentence_modules(path))
    # A head of hidden tokens may stand beside that of the next sentence, as in BERT's own weights.
    names = {architecture, architecture.replace("ForPreTraining", "ForMaskedLM")}
    possible = [name for name, heads in TASKS.items() if names & classes_of(*heads)]
    not_yet = [name for name, table in NOT_YET.items() if architecture in classes_of(table)]
    if "text2text-generation" in possible:
        possible = ["text2text-generation"]  # some are listed as models of hidden tokens too
    if sentence:
        possible = [EMBEDDINGS[1], EMBEDDINGS[0]]
    elif is_encoder(architecture) or (
        not possible and not not_yet and _embeds_texts(path, architecture)
    ):
        possible = list(EMBEDDINGS)
    if asked is None:
        if possible:
            return possible[0]
        if not architecture:
            raise TaskError(
                f"{path}: {CONFIG_FILE} names no architecture; give the task: {', '.join(NAMES)}"
            )
        what = f" ({not_yet[0]})" if not_yet else ""
        raise TaskError(
            f"{path}: no task for {architecture}{what} yet; there are: {', '.join(NAMES)}"
        )
    if architecture and asked not in (*possible, *EMBEDDINGS):
        near = ", ".join(possible) or "none"
        raise TaskError(f"{path}: {architecture} has no head for {asked}; nearest: {near}")
    return asked


def _embeds_texts(path: Path, architecture: str) -> bool:
    """Return True for a model without a head that reads texts alone."""
    if architecture not in _table("MODEL_MAPPING_NAMES"):
        return False
    with told(f"{path}: {architecture} cannot be loaded"):
        made = getattr(library("transformers", "model folders"), architecture)
        arguments = inspect.signature(made.forward).parameters
    return "input_ids" in arguments and OTHER_INPUTS.isdisjoint(arguments)


def is_encoder(architecture: str) -> bool:
    """Return True for the encoder alone of a family with encoder and decoder, as T5EncoderModel.

    Args:
        architecture: name of a class.
    """
    return architecture.endswith("EncoderModel") and architecture in classes_of("TEXT_ENCODING")


def classes_of(*names: str) -> set[str]:
    """Return the classes of one or more tables of transformers.

    Args:
        names: such as "CTC"; the name of a class stands for itself.

    Returns:
        Names of classes.
    """
    classes: set[str] = set()
    for name in names:
        classes |= _table(f"MODEL_FOR_{name}_MAPPING_NAMES") if name.isupper() else {name}
    return classes


def _table(name: str) -> set[str]:
    """Return the names of classes of a table of transformers; an entry may list several."""
    names: set[str] = set()
    for entry in getattr(library(AUTO, "model folders"), name, {}).values():
        names |= {entry} if isinstance(entry, str) else set(entry)
    return names
