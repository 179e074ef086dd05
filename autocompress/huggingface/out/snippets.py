"""Write the lines of Python that run an exported folder: with ONNX Runtime alone, with optimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autocompress.export.notes import option_lines, session_line
from autocompress.huggingface.out.sound_words import has_known_length, sound_words
from autocompress.targets.device.sessions import SessionSettings

ARRAYS = "ARRAYS"  # in lines: "np" or "pt"
DISABLED = "optimization.disable_specified_optimizers"  # entry of a session's options
LABELS = 'labels = AutoConfig.from_pretrained(".").id2label'
TOKENIZER = 'tokenizer = AutoTokenizer.from_pretrained(".")'
PROCESSOR = 'processor = AutoImageProcessor.from_pretrained(".")'
PILLOW = "from PIL import Image"
PICTURE = 'picture = Image.open("picture.png").convert("MODE")'


@dataclass(frozen=True)
class Lines:
    """Hold the lines of one kind of task.

    Attributes:
        load: lines that open what makes inputs of texts, pictures or sounds.
        prepare: lines that make `inputs`.
        outputs: of the file that are read.
        show: lines that print a result.
        optimum: class of optimum that loads the folder.
        imports: beside onnxruntime and transformers.
        show_optimum: lines that print a result of `outputs`.
        loading: further arguments of that class.
    """

    load: tuple[str, ...]
    prepare: tuple[str, ...]
    outputs: tuple[str, ...]
    show: tuple[str, ...]
    optimum: str
    imports: tuple[str, ...] = ()
    show_optimum: tuple[str, ...] = ("print(outputs.logits)",)
    loading: str = ""


ONE_TEXT = ('inputs = tokenizer("A text.", return_tensors=ARRAYS)',)
WAVES = ("import numpy as np", "from scipy.io import wavfile")
SOUND = (
    'rate, sound = wavfile.read("sound.wav")  # SAMPLING',
    "sound = (sound / 32767).astype(np.float32)CUT",
    "inputs = processor(soundCLIP, sampling_rate=rateFILL, return_tensors=ARRAYS)",
)
BEST = ("print(labels[int(logits[0].argmax())])",)
LINES = {
    "text-classification": Lines(
        (TOKENIZER, LABELS), ONE_TEXT, ("logits",), BEST, "ORTModelForSequenceClassification"
    ),
    "token-classification": Lines(
        (TOKENIZER, LABELS),
        ONE_TEXT,
        ("logits",),
        ("print([labels[int(i)] for i in logits[0].argmax(-1)])",),
        "ORTModelForTokenClassification",
    ),
    "question-answering": Lines(
        (TOKENIZER,),
        ('inputs = tokenizer("A question?", "A text with the answer.", return_tensors=ARRAYS)',),
        ("start_logits", "end_logits"),
        (
            "start, end = int(start_logits[0].argmax()), int(end_logits[0].argmax())",
            'print(tokenizer.decode(inputs["input_ids"][0][start : end + 1]))',
        ),
        "ORTModelForQuestionAnswering",
        show_optimum=("print(outputs.start_logits.argmax(), outputs.end_logits.argmax())",),
    ),
    "fill-mask": Lines(
        (TOKENIZER,),
        ('inputs = tokenizer(f"A {tokenizer.mask_token} text.", return_tensors=ARRAYS)',),
        ("logits",),
        (
            'place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)',
            "print(tokenizer.decode([int(logits[0, place].argmax())]))",
        ),
        "ORTModelForMaskedLM",
    ),
    "text-generation": Lines(
        (TOKENIZER,),
        ONE_TEXT,
        ("logits",),
        ("print(tokenizer.decode([int(logits[0, -1].argmax())]))  # the next token",),
        "ORTModelForCausalLM",
        show_optimum=("print(tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0]))",),
        loading=", use_cache=False",
    ),
    "image-classification": Lines(
        (PROCESSOR, LABELS),
        (PICTURE, "inputs = processor(images=picture, return_tensors=ARRAYS)"),
        ("logits",),
        BEST,
        "ORTModelForImageClassification",
        (PILLOW,),
    ),
    "image-segmentation": Lines(
        (PROCESSOR, LABELS),
        (PICTURE, "inputs = processor(images=picture, return_tensors=ARRAYS)"),
        ("logits",),
        ("print({labels[int(i)] for i in logits[0].argmax(0).flatten()})  # of a coarser grid",),
        "ORTModelForSemanticSegmentation",
        (PILLOW,),
    ),
    "zero-shot-image-classification": Lines(
        (TOKENIZER, PROCESSOR),
        (
            'texts = ["This is a photo of a cat.", "This is a photo of a dog."]',
            "inputs = dict(tokenizer(texts, PADDING, return_tensors=ARRAYS))",
            PICTURE,
            "pixels = processor(images=[picture] * len(texts), return_tensors=ARRAYS)",
            'inputs["pixel_values"] = pixels["pixel_values"]',
        ),
        ("image_embeds", "text_embeds"),
        ("print((image_embeds * text_embeds).sum(1))  # cosines",),
        "ORTModelForCustomTasks",
        (PILLOW,),
        ("print((outputs.image_embeds * outputs.text_embeds).sum(1))",),
    ),
    "audio-classification": Lines(
        ('processor = AutoFeatureExtractor.from_pretrained(".")', LABELS),
        SOUND,
        ("logits",),
        BEST,
        "ORTModelForAudioClassification",
        WAVES,
    ),
    "automatic-speech-recognition": Lines(
        ('processor = AutoFeatureExtractor.from_pretrained(".")', TOKENIZER),
        SOUND,
        ("logits",),
        ("print(tokenizer.decode(logits[0].argmax(-1)))",),
        "ORTModelForCTC",
        WAVES,
    ),
}
TWO_TEXTS = 'inputs = tokenizer(["A text.", "Another one."], padding=True, return_tensors=ARRAYS)'
LINES["sentence-similarity"] = LINES["feature-extraction"] = Lines(
    (TOKENIZER,),
    (TWO_TEXTS,),
    ("sentence_embedding",),
    ("print(sentence_embedding @ sentence_embedding.T)",),
    "ORTModelForFeatureExtraction",
    show_optimum=("print(outputs.last_hidden_state)  # of the tokens, before they are pooled",),
)


@dataclass(frozen=True)
class Facts:
    """Hold what the lines depend on.

    Attributes:
        task: name of the task.
        inputs: shape of each input by name; free dimensions are no integers.
        settings: how sessions are opened.
        config: content of config.json.
        processor: content of preprocessor_config.json, or of processor_config.json.
        tokenizer: content of tokenizer_config.json.
    """

    task: str
    inputs: Mapping[str, Sequence[Any]]
    settings: SessionSettings
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)


def runtime_lines(facts: Facts) -> list[str]:
    """Return lines that run model.onnx with its runtime and the folder's own files.

    Args:
        facts: of the folder.

    Returns:
        A program that starts in the folder. Of an unknown task it lacks the inputs.
    """
    lines = _lines_of(facts)
    opening = [*option_lines(facts.settings), session_line(facts.settings)]
    calls = facts.settings.runtime != "onnxruntime"
    if lines is None:
        feed = ", ".join(f'"{name}": {name}' for name in facts.inputs)
        call = "session(" if calls else "session.run(None, "
        return [*opening, f"outputs = {call}{{{feed}}})"]
    names = ", ".join(f'"{name}"' for name in facts.inputs)
    if len(facts.inputs) == 1:
        names += ","
    body = [
        *_adapted(lines.load, facts, "np"),
        *_adapted(lines.prepare, facts, "np"),
        f"feed = {{name: inputs[name] for name in ({names})}}",
    ]
    if calls:
        body.append("outputs = session(feed)")
        body += [f'{name} = outputs["{name}"]' for name in lines.outputs]
    else:
        read = ", ".join(f'"{name}"' for name in lines.outputs)
        left = ", ".join(lines.outputs)
        left = f"({left},)" if len(lines.outputs) == 1 else left
        body.append(f"{left} = session.run([{read}], feed)")
    return [*_imports(lines), *opening, *body, *_results(lines.show, facts)]


def optimum_lines(facts: Facts) -> list[str]:
    """Return lines that run the folder with optimum.

    Args:
        facts: of the folder.

    Returns:
        A program that starts in the folder; none for an unknown task, another runtime, or inputs
        that optimum does not pass to the file.
    """
    lines = _lines_of(facts)
    if lines is None or facts.settings.runtime != "onnxruntime" or _beyond_optimum(facts):
        return []
    load = [line for line in lines.load if line != LABELS]
    return [
        *_imports(lines, load),
        f"from optimum.onnxruntime import {lines.optimum}",
        *option_lines(facts.settings),
        *_disabling(facts.settings),
        f'model = {lines.optimum}.from_pretrained(".", session_options=options{lines.loading})',
        *_adapted(load, facts, "pt"),
        *_adapted(lines.prepare, facts, "pt"),
        "outputs = model(**inputs)",
        *lines.show_optimum,
    ]


def _lines_of(facts: Facts) -> Lines | None:
    """Return the lines of a task; None for another one, or if a program cannot be so short.

    A decoder that reads what it has written needs a loop over tokens, which transformers and
    optimum hide. Of other files the length of a sound must be known.
    """
    known = has_known_length(facts.inputs, facts.processor)
    if "decoder_input_ids" in facts.inputs or not known:
        return None
    return LINES.get(facts.task)


def _disabling(settings: SessionSettings) -> list[str]:
    """Return the line that turns off passes of the optimiser by options, as optimum needs it."""
    if not settings.disabled_optimizers:
        return []
    names = ";".join(settings.disabled_optimizers)
    return [f'options.add_session_config_entry("{DISABLED}", "{names}")']


def _imports(lines: Lines, load: Sequence[str] | None = None) -> list[str]:
    """Return the imports, those of the standard order first."""
    names = []
    for line in lines.load if load is None else load:
        names.append(line.split(" = ")[1].split(".")[0])
    return [*lines.imports, f"from transformers import {', '.join(sorted(names))}"]


def _adapted(lines: Sequence[str], facts: Facts, arrays: str) -> list[str]:
    """Fill in what the folder says of its texts, pictures and sounds."""
    pixels = facts.inputs.get("pixel_values", (None, 3))
    mode = "L" if pixels[1] == 1 else "RGB"
    padding = "padding=True"
    if str(facts.config.get("model_type", "")).startswith("siglip"):
        padding = f'padding="max_length", max_length={facts.inputs["input_ids"][1]}'
        if not isinstance(facts.inputs["input_ids"][1], int):
            longest = facts.config.get("text_config", {}).get("max_position_embeddings", 64)
            padding = f'padding="max_length", max_length={longest}'
    adapted = []
    for line in lines:
        for word, value in (
            (ARRAYS, f'"{arrays}"'),
            ("MODE", mode),
            ("PADDING", padding),
            *sound_words(facts.inputs, facts.processor).items(),
        ):
            line = line.replace(word, value)
        adapted.append(line)
        if line == TOKENIZER and facts.tokenizer and not facts.tokenizer.get("pad_token"):
            padding_id, other = facts.config.get("pad_token_id"), "tokenizer.eos_token"
            if isinstance(padding_id, int) and padding_id >= 0:
                other = f"tokenizer.convert_ids_to_tokens({padding_id})"
            adapted.append(f"tokenizer.pad_token = tokenizer.pad_token or {other}")
    return adapted


def _beyond_optimum(facts: Facts) -> bool:
    """Return True if the file has an input that optimum's class of the task does not pass to it."""
    if facts.task == "automatic-speech-recognition":
        return set(facts.inputs) != {"input_values"}
    whisper = facts.config.get("model_type") == "whisper"
    return facts.task == "audio-classification" and "input_features" in facts.inputs and not whisper


def _results(show: Sequence[str], facts: Facts) -> list[str]:
    """Return the lines that print a result, by what the config says of the labels."""
    if show != BEST or facts.task != "text-classification":
        return list(show)
    if len(facts.config.get("id2label") or (0, 1)) == 1:
        return ["print(logits[0])"]
    if facts.config.get("problem_type") == "multi_label_classification":
        return ["print([labels[i] for i, value in enumerate(logits[0]) if value > 0])"]
    return list(show)
