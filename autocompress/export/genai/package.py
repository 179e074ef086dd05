"""Make the folder of a file a package that onnxruntime-genai opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.export.genai.builder import CONFIG
from autocompress.export.genai.phases import PIXELS, TOKENS
from autocompress.export.genai.pictures import EMBEDDINGS, FEATURES
from autocompress.results.files import MODEL_FILE, disk_error, write_json
from autocompress.targets.device.sessions import (
    DECODER,
    EMBEDDING,
    VISION,
    SessionSettings,
    tower_file,
)
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
RUN_PICTURES = (
    'model = genai.Model(".")',
    'tokens = np.array(inputs["input_ids"], np.int32)',
    "parameters = genai.GeneratorParams(model)",
    "parameters.set_search_options(do_sample=False, max_length=tokens.shape[1] + 20)",
    "generator = genai.Generator(model, parameters)",
    "named = genai.NamedTensors()",
    'named["input_ids"] = genai.Tensor(tokens)',
    'named["pixel_values"] = genai.Tensor(np.array(inputs["pixel_values"], np.float32))',
    'named["num_image_tokens"] = genai.Tensor(np.array([(tokens == PART).sum()]))',
    "generator.set_inputs(named)",
    "while not generator.is_done():",
    "    generator.generate_next_token()",
    "print(tokenizer.decode(generator.get_sequence(0)[tokens.shape[1] :]))",
)
MADE = (
    "import numpy as np",
    "",
    "# `inputs` are arrays that the processor of the model folder makes of a picture and a prompt,",
    "# `tokenizer` is the one of the processor.",
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
        inputs: lines that make the inputs of models that read pictures.
    """
    model = config["model"]
    if VISION not in model:
        return PROGRAM
    run = [line.replace("PART", str(model[PART])) for line in RUN_PICTURES]
    return ("import onnxruntime_genai as genai", *(inputs or MADE), *run)


def with_towers(text: str, part: int) -> str:
    """Return the genai_config.json of a package with a file per tower.

    Args:
        text: that of its language model.
        part: number of the token that stands for a part of a picture.
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
    model["type"], model[PART] = TYPE, part
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
    options = config["model"]["decoder"]["session_options"]
    options["intra_op_num_threads"] = settings.threads
    options[SPINNING] = "1" if settings.spinning else "0"
    if settings.disabled_optimizers:
        options[DISABLED] = ";".join(settings.disabled_optimizers)
    write_json(folder / CONFIG, config)
    # The processor of pictures reads its own config, and that of the model.
    left_out = LEFT_OUT[2:3] if VISION in config["model"] else LEFT_OUT
    for name in () if known is None else known.files:
        source = Path(known.folder) / name if known else folder
        if source.name in left_out or source.suffix == ".py" or not source.is_file():
            continue
        try:
            shutil.copyfile(source, folder / source.name)
        except OSError as error:
            raise disk_error(folder, error) from error
