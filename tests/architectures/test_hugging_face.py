"""Families of Hugging Face models: what is covered, and one mixed file of each at other sizes.

Whole searches are slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture import relative_difference

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import ExportError
from autocompress.export.compressor import Compressor
from autocompress.export.prepare import prepare
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import Inputs, feed_of
from autocompress.task.calls import call_model
from benchmarks.families import check_family, covered_share
from benchmarks.hugging_face import FAMILIES, family_task

pytestmark = pytest.mark.slow

# Without attention, with a table of positions per head, or with a mask of as many heads.
HEADS_WHOLE = {"convnext", "resnet", "mobilenet_v2", "swin", "t5"}


def run(session: Any, inputs: Inputs) -> object:
    return session.run(None, feed_of(inputs, [value.name for value in session.get_inputs()]))[0]


def computed(model: torch.nn.Module, inputs: Inputs) -> object:
    with torch.no_grad():
        return call_model(model, inputs).numpy()


# What docs/limitations.md says of them.
ONE_BATCH_SIZE = {"llava", "smolvlm"}
NO_PROGRAM = ("vilt", "qwen2_vl")
SUPPORTED = [name for name in FAMILIES if name not in NO_PROGRAM]
# Each is built like another family, whose name stands beside it and which every run tests.
ALIKE = {
    "smolvlm": "llava",
    "siglip": "clip",
    "qwen3": "llama",
    "gemma3": "llama",
    "mixtral": "qwen2_moe",
    "whisper_encoder": "whisper",
    "qwen2_vl": "vilt",
    "roberta": "bert",
    "distilbert": "bert",
}
# Each is searched, exported and run by a test of tests/huggingface/kinds in every run.
SEARCHED = {
    "t5": "text2text_generation",
    "whisper": "transcription",
    "wav2vec2": "automatic_speech_recognition",
    "segformer": "image_segmentation",
}


def marked(names: Iterable[str]) -> list[Any]:
    """Leave the families that are covered by other tests to `make test SLOW=yes`."""
    covered = {**ALIKE, **SEARCHED}
    return [
        pytest.param(name, marks=pytest.mark.extensive) if name in covered else name
        for name in names
    ]


@pytest.mark.parametrize("name", marked(SUPPORTED))
def test_one_mixed_file_computes_what_is_simulated_at_other_sizes(name: str) -> None:
    family, task = FAMILIES[name], prepared(family_task(name))
    modules = find_modules(task.model, task.example_inputs)
    assert covered_share(modules) > 0.9
    builder = prepare(task, modules, KernelChoice())
    prunable = {group.name: group for group in builder.module_map.groups if group.reason is None}
    assert prunable
    assert ("heads" in {group.kind for group in prunable.values()}) == (name not in HEADS_WHOLE)
    configs = {}
    for i, module in enumerate(builder.module_map):
        ratio = 0.5 if module.name in prunable else 0.0
        configs[module.name] = ModuleConfig(
            (4, 32)[i % 2],
            pruning_ratio=ratio,
            rank_ratio=0.5 if i % 3 == 0 and module.factorisable else 1.0,
        )
    candidate = Candidate.of(configs)
    compressor = Compressor.of(builder)
    stitcher = compressor.stitcher
    file = compressor.graph(candidate)
    assert file.ByteSize() == builder.size_bytes(candidate) < len(builder.baseline)
    simulated = stitcher.apply(candidate)
    original = family_task(name).model
    assert any("dimension 0 (batch) is fixed" in line for line in builder.lowered.fixed) == (
        name in ONE_BATCH_SIZE
    )
    baseline, mixed = open_session(builder.baseline), open_session(file.SerializeToString())
    batches = [] if name in ONE_BATCH_SIZE else [2, 7]
    for inputs in [family.inputs(batch, 0) for batch in (4, *batches)] + [
        family.inputs(4, length) for length in family.lengths
    ]:
        assert relative_difference(run(baseline, inputs), computed(original, inputs)) < 1e-4
        assert relative_difference(run(mixed, inputs), computed(simulated, inputs)) < 1e-4


@pytest.mark.parametrize("name", marked(NO_PROGRAM))
def test_a_model_without_a_program_is_refused_in_one_line(name: str) -> None:
    task = prepared(family_task(name))
    with pytest.raises(
        ExportError,
        match=rf"\(data-dependent\), which no file can follow \(at modeling_{name}.py:\d+\)",
    ) as caught:
        prepare(task, find_modules(task.model, task.example_inputs), KernelChoice())
    assert "\n" not in str(caught.value)


@pytest.mark.extensive
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_search_ends_in_files_that_load_and_are_made_again(name: str, tmp_path: Path) -> None:
    steps = check_family(name, tmp_path, "analytic:phone-npu").steps
    failed = {step for step, said in steps.items() if said != "ok"}
    assert failed == ({"other batch"} if name in ONE_BATCH_SIZE else set()), steps
