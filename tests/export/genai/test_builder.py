"""The process of the model builder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_decoders import decoder_task
from torch import nn

from autocompress.errors import ExportError
from autocompress.export.genai import builder
from autocompress.export.genai.builder import built, noise_of


def test_parameters_become_numbers_that_differ() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.LayerNorm(8))
    before = model[0].weight.detach().clone()
    noise = noise_of(model)
    values = torch.cat([numbers.flatten() for numbers in noise.values()])
    assert len(values.unique()) == len(values)
    assert [*noise] == [name for name, _ in model.named_parameters()]
    assert torch.equal(model[0].weight, before), "the model is not changed"


def test_a_model_that_the_builder_does_not_take_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = decoder_task(tmp_path)
    monkeypatch.setattr(builder, "OPTIONS", ("moe_quant_type=unknown",))
    with pytest.raises(ExportError, match="does not take the model: ValueError: moe_quant_type"):
        built(noise_of(task.model), task.pretrained)
