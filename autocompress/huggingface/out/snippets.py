"""Write the lines of Python that run an exported folder: with ONNX Runtime alone, with optimum."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autocompress.export.notes import option_lines, session_line
from autocompress.huggingface.out.lines import (
    ARRAYS,
    BEST,
    DECODED,
    LABELS,
    LINES,
    TOKENIZER,
    WRITTEN,
    Lines,
)
from autocompress.huggingface.out.sound_words import has_known_length, sound_words
from autocompress.targets.device.sessions import LITERT, SessionSettings

QUESTIONS, SPEECH = "image-text-to-text", "automatic-speech-recognition"
# Texts of models of many languages go on with the tokens of language, task and no times.
TRANSCRIPT = "tokens = np.array([[START]], np.int32)  # begin a transcript"
DISABLED = "optimization.disable_specified_optimizers"  # entry of a session's options
BILINEAR = 2  # of PIL
QUOTE = '"'
FLAT = [  # lines that run a file in LiteRT on `feed`
    "session.allocate_tensors()",
    "for one in session.get_input_details():",
    '    session.set_tensor(one["index"], feed[one["name"]])',
    "session.invoke()",
    "outputs = {",
    '    one["name"]: session.get_tensor(one["index"]) for one in session.get_output_details()',
    "}",
]


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
        generation: content of generation_config.json.
        prompt: that each text begins with.
        has_template: True if the folder has a template of conversations.
    """

    task: str
    inputs: Mapping[str, Sequence[Any]]
    settings: SessionSettings
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    has_template: bool = False


def runtime_lines(facts: Facts) -> list[str]:
    """Return lines that run model.onnx with its runtime and the folder's own files.

    Args:
        facts: of the folder.

    Returns:
        A program that starts in the folder. Of an unknown task it lacks the inputs.
    """
    lines = _lines_of(facts)
    opening = [*option_lines(facts.settings), session_line(facts.settings)]
    if lines is None:
        feed = ", ".join(f'"{name}": {name}' for name in facts.inputs)
        if _is_litert(facts):
            return [*opening, f"feed = {{{feed}}}", *FLAT]
        call = "session.run(None, " if _is_onnxruntime(facts) else "session("
        return [*opening, f"outputs = {call}{{{feed}}})"]
    names = [f'"{name}"' for name in facts.inputs if name != WRITTEN]
    listed = ", ".join(names) + "," * (len(names) == 1)
    body = [
        *_adapted(lines.load, facts, "np"),
        *_adapted(lines.prepare, facts, "np"),
        f"feed = {{name: inputs[name] for name in ({listed})}}",
    ]
    if WRITTEN not in facts.inputs:
        body += _run_lines(lines, facts)
    return [*_imports(lines), *opening, *body, *_results(lines, facts)]


def input_lines(facts: Facts) -> list[str]:
    """Return lines that make `inputs` of a picture and a question, or of a sound.

    Args:
        facts: of a folder of a model that answers questions about pictures or writes down sounds.

    Returns:
        Of sounds also a line that makes `tokens`, which begin a transcript.
    """
    lines = DECODED[SPEECH if facts.task == SPEECH else QUESTIONS]
    prepare = lines.prepare
    if facts.task == SPEECH:
        prepare += (TRANSCRIPT.replace("START", _decoder_words(facts)["START"]),)
    else:
        prepare = prepare[: prepare.index("ASKED") + 1]
    made = [*_adapted(lines.load, facts, "np"), *_adapted(prepare, facts, "np")]
    return [*_imports(lines), *made]


def _is_onnxruntime(facts: Facts) -> bool:
    return facts.settings.runtime == "onnxruntime"


def _is_litert(facts: Facts) -> bool:
    return facts.settings.runtime == LITERT.runtime


def _run_lines(lines: Lines, facts: Facts) -> list[str]:
    """Return the lines that run the file and name its outputs."""
    if _is_litert(facts):
        return [*FLAT, *(f'{name} = outputs["{name}"]' for name in lines.outputs)]
    if not _is_onnxruntime(facts):
        outputs = [f'{name} = outputs["{name}"]' for name in lines.outputs]
        return ["outputs = session(feed)", *outputs]
    read = ", ".join(f'"{name}"' for name in lines.outputs)
    left = ", ".join(lines.outputs)
    left = f"({left},)" if len(lines.outputs) == 1 else left
    return [f"{left} = session.run([{read}], feed)"]


def optimum_lines(facts: Facts) -> list[str]:
    """Return lines that run the folder with optimum.

    Args:
        facts: of the folder.

    Returns:
        A program that starts in the folder; none for an unknown task, another runtime, a task
        without a class of optimum, or inputs that optimum does not pass to the file.
    """
    lines = _lines_of(facts)
    if lines is None or not lines.optimum or not _is_onnxruntime(facts) or _beyond_optimum(facts):
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

    The length of a sound must be known, and a decoder must take texts of all lengths.
    """
    if not has_known_length(facts.inputs, facts.processor):
        return None
    if WRITTEN not in facts.inputs:
        return LINES.get(facts.task)
    fixed = isinstance(facts.inputs[WRITTEN][1], int)
    return None if fixed or not _decoder_words(facts) else DECODED.get(facts.task)


def _decoder_words(facts: Facts) -> dict[str, str]:
    """Return what a decoder begins and ends with; {} if no config tells the begin."""
    inner = facts.config.get("text_config" if facts.task == QUESTIONS else "decoder")
    places = [facts.config, facts.generation, inner if isinstance(inner, Mapping) else {}]
    names = ("decoder_start_token_id", "bos_token_id")
    starts = [place.get(name) for name in names for place in places]
    start = next((token for token in starts if isinstance(token, int)), None)
    ends = next((place["eos_token_id"] for place in places if place.get("eos_token_id")), None)
    if start is None and facts.task != QUESTIONS:  # there the prompt ends with the first token
        return {}
    last = ends if isinstance(ends, list) else [ends]
    if ends is None:
        last = ["tokenizer.eos_token_id", "tokenizer.sep_token_id"]
    forced = [place.get("forced_bos_token_id") for place in places]
    first = [token for token in forced if isinstance(token, int)][:1]
    begin = [start, *(_forced_tokens(places) or first)]
    run = '(logits,) = session.run(["logits"], feed)'
    return {
        "START": ", ".join(map(str, begin)),
        "ENDS": ", ".join(map(str, last)) + "," * (len(last) == 1),
        "RUN": run if _is_onnxruntime(facts) else 'logits = session(feed)["logits"]',
    }


def _forced_tokens(places: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the tokens behind the first one that a config fixes: language, task, no times.

    Args:
        places: configs, whose entry lists [place in the text, token]; a token of None is left to
            the model, which no short program can do.
    """
    for place in places:
        pairs = place.get("forced_decoder_ids") or []
        tokens = [pair[1] for pair in pairs if isinstance(pair[1], int)]
        if tokens and [pair[0] for pair in pairs] == [*range(1, len(tokens) + 1)]:
            return tokens
    return []


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
    pixels = facts.inputs.get("pixel_values", ())
    words = {
        ARRAYS: f'"{arrays}"',
        "MODE": "L" if len(pixels) == 4 and pixels[1] == 1 else "RGB",
        "PADDING": _padding(facts),
        "SQUARE": _square(facts),
        "ASKED": _asked(facts),
        **sound_words(facts.inputs, facts.processor),
        "PROMPT": f"{json.dumps(facts.prompt, ensure_ascii=False)} " if facts.prompt else "",
    }
    adapted = []
    for line in lines:
        line = _filled_up(line, facts)
        for word, value in words.items():
            line = line.replace(word, value)
        adapted.append(line)
        if line == TOKENIZER and facts.tokenizer and not facts.tokenizer.get("pad_token"):
            padding_id, other = facts.config.get("pad_token_id"), "tokenizer.eos_token"
            if isinstance(padding_id, int) and padding_id >= 0:
                other = f"tokenizer.convert_ids_to_tokens({padding_id})"
            adapted.append(f"tokenizer.pad_token = tokenizer.pad_token or {other}")
    return adapted


def _filled_up(line: str, facts: Facts) -> str:
    """Return a line that gives texts the number and the length that a .tflite file has."""
    shape = facts.inputs.get("input_ids", ())
    if not _is_litert(facts) or len(shape) != 2:
        return line
    if shape[0] == 1 and line.startswith("texts = [") and "Another" not in line.partition("#")[2]:
        line = f"{line.partition('.' + QUOTE)[0]}.{QUOTE}]"
    for option in ("padding=True, ", "PADDING, "):
        line = line.replace(option, "")
    options = f'padding="max_length", max_length={shape[1]}, truncation=True'
    called = "tokenizer(" in line
    return line.replace("return_tensors", f"{options}, return_tensors") if called else line


def _padding(facts: Facts) -> str:
    """Return the padding of texts; SigLIP was trained with texts of one length."""
    if not str(facts.config.get("model_type", "")).startswith("siglip"):
        return "padding=True"
    length = facts.inputs["input_ids"][1]
    if not isinstance(length, int):
        length = facts.config.get("text_config", {}).get("max_position_embeddings", 64)
    return f'padding="max_length", max_length={length}'


def _square(facts: Facts) -> str:
    """Return what gives a picture the size of the file, where the processor keeps its shape."""
    images = facts.processor.get("image_processor", facts.processor)
    size, shape = images.get("size"), facts.inputs.get("pixel_values", ())[2:]
    fixed = len(shape) in (2, 3) and all(isinstance(side, int) for side in shape)
    if not fixed or not isinstance(size, Mapping) or (size.get("height") and size.get("width")):
        return ""
    width, height = shape[1], shape[0]
    if facts.task == QUESTIONS:
        if images.get("do_center_crop"):
            return ""
        width = size.get("shortest_edge") or size.get("longest_edge") or size.get("max_width")
        height = size.get("max_height", width)
    way = images.get("resample")
    return f".resize(({width}, {height}), {BILINEAR if way is None else way})"


def _asked(facts: Facts) -> str:
    """Return the lines that make the inputs of a question about a picture."""
    lines = ['prompt = f"{processor.image_token}\\nA question?\\n"']
    lines += ['inputs = dict(processor(images=[picture], text=[prompt], return_tensors="np"))']
    if facts.has_template:
        lines = [
            'text = {"type": "text", "text": "A question?"}',
            'asked = {"role": "user", "content": [{"type": "image", "image": picture}, text]}',
            'how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}',
            'how["return_tensors"] = "np"',
            "inputs = dict(processor.apply_chat_template([asked], **how))",
        ]
    shape = facts.inputs.get("pixel_values", ())
    if len(shape) == 3:  # patches of one picture
        words = f"# {shape[1]} patches: of a picture of the size that the search had"
        lines.append(f'inputs["pixel_values"] = inputs["pixel_values"][None]  {words}')
    return "\n".join(lines)


def _beyond_optimum(facts: Facts) -> bool:
    """Return True if the file has an input that optimum's class of the task does not pass to it."""
    if facts.task == SPEECH:
        return set(facts.inputs) != {"input_values"}
    whisper = facts.config.get("model_type") == "whisper"
    return facts.task == "audio-classification" and "input_features" in facts.inputs and not whisper


def _results(lines: Lines, facts: Facts) -> list[str]:
    """Return the lines that print a result, by what the configs say of labels and tokens."""
    show = list(lines.show)
    if WRITTEN in facts.inputs:
        for word, value in _decoder_words(facts).items():
            show = [line.replace(word, value) for line in show]
    if lines.show != BEST or facts.task != "text-classification":
        return show
    problem = facts.config.get("problem_type")
    if problem == "regression" or len(facts.config.get("id2label") or (0, 1)) == 1:
        return ["print(logits[0])"]
    if problem == "multi_label_classification":
        return ["print([labels[i] for i, value in enumerate(logits[0]) if value > 0])"]
    return show
