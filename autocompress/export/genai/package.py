"""Make the folder of a file a package that onnxruntime-genai opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.export.genai.builder import CONFIG
from autocompress.export.genai.phases import PIXELS, TOKENS
from autocompress.export.genai.towers.pictures import EMBEDDINGS, FEATURES
from autocompress.export.genai.towers.sounds import HEARD, STATES
from autocompress.results.files import MODEL_FILE, disk_error, write_json
from autocompress.targets.device.sessions import (
    DECODER,
    EMBEDDING,
    ENCODER,
    VISION,
    SessionSettings,
    tower_file,
)
from autocompress.task.batches import CACHE, PRESENT
from autocompress.task.task import Pretrained

DISABLED = "optimization.disable_specified_optimizers"
SPINNING = "session.intra_op.allow_spinning"
# Lines of Python that generate text, started in the folder.
PROGRAM = (
    "import numpy as np",
    "import onnxruntime_genai as genai",
    "",
    'model = genai.Model(".")',
    "tokenizer = genai.Tokenizer(model)",
    'prompt = tokenizer.encode("A text")',
    "parameters = genai.GeneratorParams(model)",
    "parameters.set_search_options(do_sample=False, max_length=len(prompt) + 20)",
    "generator = genai.Generator(model, parameters)",
    "generator.append_tokens(np.array([prompt], np.int32))",
    "while not generator.is_done():",
    "    generator.generate_next_token()",
    "print(tokenizer.decode(generator.get_sequence(0)))",
)
# The same behind lines that make `inputs` of a picture and a prompt. The tokenizer is that of the
# processor, since onnxruntime-genai does not know all tokenizers.
RUN = (
    'model = genai.Model(".")',
    "parameters = genai.GeneratorParams(model)",
    "parameters.set_search_options(do_sample=False, max_length=LENGTH)",
    "generator = genai.Generator(model, parameters)",
    "named = genai.NamedTensors()",
    'named["input_ids"] = genai.Tensor(tokens)',
    "MEDIA",
    "generator.set_inputs(named)",
    "while not generator.is_done():",
    "    generator.generate_next_token()",
    "written = generator.get_sequence(0)[tokens.shape[1] :]",
    "print(tokenizer.decode(written, skip_special_tokens=True))",
)
TOKENS_OF_PICTURES = 'tokens = np.array(inputs["input_ids"], np.int32)'
PICTURES = (
    'named["pixel_values"] = genai.Tensor(np.array(inputs["pixel_values"], np.float32))',
    'named["num_image_tokens"] = genai.Tensor(np.array([(tokens == PART).sum()]))',
)
SOUNDS = ('named["audio_features"] = genai.Tensor(np.array(inputs["input_features"], np.float32))',)
MADE = (
    "import numpy as np",
    "",
    "# `inputs` are arrays that the processor of the model folder makes of a picture and a prompt,",
    "# `tokenizer` is the one of the processor.",
)
MADE_OF_SOUNDS = (
    "import numpy as np",
    "",
    "# `inputs` are arrays that the feature extractor of the model folder makes of a sound,",
    "# `tokens` (1, n) of int32 begin its transcript, `tokenizer` is the one of the folder.",
)
# onnxruntime-genai's name of models that compute features of pictures, put these into the
# embeddings of their tokens, and run the decoder on them.
TYPE = "gemma3"
PART = "image_token_id"  # entry of the config
# Files of a model folder that a package does not need.
LEFT_OUT = ("config.json", "generation_config.json", "README.md", "preprocessor_config.json")


def program(config: Mapping[str, Any], inputs: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the lines of Python that run a package.

    Args:
        config: content of its genai_config.json.
        inputs: lines that make the inputs of models that read pictures or hear sounds.
    """
    model, opening = config["model"], "import onnxruntime_genai as genai"
    if VISION in model:
        media = "\n".join(PICTURES).replace("PART", str(model[PART]))
        made, length = (*(inputs or MADE), TOKENS_OF_PICTURES), "tokens.shape[1] + 20"
    elif ENCODER in model:
        media, length = "\n".join(SOUNDS), str(model["context_length"])
        made = (*(inputs or MADE_OF_SOUNDS),)
    else:
        return PROGRAM
    run = [line.replace("MEDIA", media).replace("LENGTH", length) for line in RUN]
    return (opening, *made, *run)


def with_towers(text: str, part: int, marked: bool = False) -> str:
    """Return the genai_config.json of a package with a file per tower.

    Args:
        text: that of its language model.
        part: number of the token that stands for a part of a picture.
        marked: True if embeddings have a channel that tells parts of pictures from words.
    """
    config = json.loads(text)
    model, files = config["model"], {}
    for name in (VISION, EMBEDDING, DECODER):
        files[name] = tower_file(Path(MODEL_FILE), name).name
    decoder = model[DECODER]
    decoder["filename"] = files[DECODER]
    inputs = {name: value for name, value in decoder["inputs"].items() if name != TOKENS}
    decoder["inputs"] = {EMBEDDINGS: EMBEDDINGS, **inputs}
    model[VISION] = {
        "filename": files[VISION],
        "inputs": {PIXELS: PIXELS},
        "outputs": {FEATURES: FEATURES},
    }
    model[EMBEDDING] = {
        "filename": files[EMBEDDING],
        "inputs": {TOKENS: TOKENS, FEATURES: FEATURES},
        "outputs": {EMBEDDINGS: EMBEDDINGS},
    }
    if marked:  # the size of embeddings, for which memory is taken
        decoder["hidden_size"] += 1
    model["type"], model[PART] = TYPE, part
    return json.dumps(config)


def with_sounds(text: str) -> str:
    """Return the genai_config.json of a package with an encoder of sounds and a decoder.

    Args:
        text: that of the model builder.
    """
    config = json.loads(text)
    model = config["model"]
    for name in (ENCODER, DECODER):
        model[name]["filename"] = tower_file(Path(MODEL_FILE), name).name
    model[ENCODER]["inputs"] = {HEARD: HEARD}
    model[ENCODER]["outputs"] = {"encoder_hidden_states": STATES}
    for kind in ("key", "value"):
        own, cross = f"%d.decoder.{kind}", f"%d.encoder.{kind}"
        model[ENCODER]["outputs"][f"cross_present_{kind}_names"] = f"{PRESENT}{cross}"
        model[DECODER]["inputs"][f"past_{kind}_names"] = f"{CACHE}{own}"
        model[DECODER]["inputs"][f"cross_past_{kind}_names"] = f"{CACHE}{cross}"
        model[DECODER]["outputs"][f"present_{kind}_names"] = f"{PRESENT}{own}"
    return json.dumps(config)


def write_package(
    folder: Path, papers: Mapping[str, str], known: Pretrained | None, settings: SessionSettings
) -> None:
    """Write genai_config.json and the tokenizer beside a model.onnx.

    Args:
        folder: holds model.onnx.
        papers: of its float graph; {} for files of other runtimes, which need nothing.
        known: the model folder, which has the tokenizer.
        settings: how sessions are opened.

    Raises:
        RunFolderError: a file cannot be written.
    """
    if CONFIG not in papers:
        return
    config = json.loads(papers[CONFIG])
    model = config["model"]
    for options in (model[name]["session_options"] for name in (DECODER, ENCODER) if name in model):
        options["intra_op_num_threads"] = settings.threads
        options[SPINNING] = "1" if settings.spinning else "0"
        if settings.disabled_optimizers:
            options[DISABLED] = ";".join(settings.disabled_optimizers)
    write_json(folder / CONFIG, config)
    # Processors of pictures and sounds read their own config, and that of the model.
    left_out = LEFT_OUT[2:3] if VISION in model or ENCODER in model else LEFT_OUT
    for name in () if known is None else known.files:
        source = Path(known.folder) / name if known else folder
        if source.name in left_out or source.suffix == ".py" or not source.is_file():
            continue
        try:
            shutil.copyfile(source, folder / source.name)
        except OSError as error:
            raise disk_error(folder, error) from error
