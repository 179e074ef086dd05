"""Random numbers in a file, in place of parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from safetensors.torch import load_file
from torch import nn

from autocompress.export.genai import noise as noise_module
from autocompress.export.genai.noise import mapped_array, write_noise


def test_parameters_become_numbers_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise_module, "CHUNK", 5)
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.LayerNorm(8))
    before = model[0].weight.detach().clone()
    noise = write_noise(model, tmp_path / "noise.safetensors")
    values = np.concatenate([numbers.reshape(-1) for numbers in noise.values()])
    assert len(np.unique(values)) == len(values)
    assert [*noise] == [name for name, _ in model.named_parameters()]
    assert torch.equal(model[0].weight, before), "the model is not changed"


def test_the_file_is_one_of_safetensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Embedding(7, 2))
    noise = write_noise(model, tmp_path / "noise.safetensors")
    read = load_file(tmp_path / "noise.safetensors")
    assert read.keys() == noise.keys()
    for name, parameter in model.named_parameters():
        assert read[name].shape == parameter.shape
        assert np.array_equal(read[name].numpy(), noise[name])
        assert isinstance(noise[name], np.memmap)


def test_tensors_are_mapped_from_their_file(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    (tmp_path / "weights").write_bytes(b"12345678" + array.tobytes())
    tensor = numpy_helper.from_array(array, "w")
    assert np.array_equal(mapped_array(tensor, tmp_path), array)
    external_data_helper.set_external_data(tensor, "weights", 8, array.nbytes)
    tensor.ClearField("raw_data")
    mapped = mapped_array(tensor, tmp_path)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, array)
    empty = helper.make_tensor("e", TensorProto.FLOAT, (0, 3), b"", raw=True)
    external_data_helper.set_external_data(empty, "weights", 0, 0)
    assert mapped_array(empty, tmp_path).shape == (0, 3)
