"""Make the folder of a file a package that onnxruntime-genai opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from autocompress.export.genai.builder import CONFIG
from autocompress.results.files import disk_error, write_json
from autocompress.targets.device.sessions import SessionSettings
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
# Files of a model folder that a package does not need.
LEFT_OUT = ("config.json", "generation_config.json", "README.md", "preprocessor_config.json")


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
    for name in () if known is None else known.files:
        source = Path(known.folder) / name if known else folder
        if source.name in LEFT_OUT or source.suffix == ".py" or not source.is_file():
            continue
        try:
            shutil.copyfile(source, folder / source.name)
        except OSError as error:
            raise disk_error(folder, error) from error
