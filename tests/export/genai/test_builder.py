"""The process of the model builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from small_decoders import decoder_task

from autocompress.errors import ExportError
from autocompress.export.genai import builder
from autocompress.export.genai.builder import built, known_architectures


def test_the_graph_and_its_weights_lie_in_files(tmp_path: Path) -> None:
    """Every parameter is recognised, and the graph holds no number of it."""
    task = decoder_task(tmp_path)
    with built(task.model, task.pretrained) as made:
        assert all(t.data_location == TensorProto.EXTERNAL for t in made.proto.graph.initializer)
        table = made.noise["model.embed_tokens.weight"]
        tensors = {tensor.name: tensor for tensor in made.proto.graph.initializer}
        shown = made.array_of(tensors["lm_head.MatMul.weight"])
        assert isinstance(shown, np.memmap)
        assert np.array_equal(shown, table.T), "the head, which is tied"
        folder = made.folder
    assert not folder.exists()


def test_the_builder_names_its_architectures() -> None:
    known = known_architectures()
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM"} <= set(known)
    assert "GPT2LMHeadModel" not in known


def test_a_model_that_the_builder_does_not_take_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = decoder_task(tmp_path)
    monkeypatch.setattr(builder, "OPTIONS", ("moe_quant_type=unknown",))
    with pytest.raises(ExportError, match="does not take the model: ValueError: moe_quant_type"):
        built(task.model, task.pretrained).__enter__()
