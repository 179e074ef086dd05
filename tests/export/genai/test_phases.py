"""Inputs of the phases of a decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper

from autocompress.export.genai.phases import (
    at_phase,
    mixed_note,
    other_feeds,
    phase_feed,
    unpadded,
)
from autocompress.export.lowering.lower import LoweredModel
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.targets.device.feeds import parts_of
from autocompress.task.batches import UNREAD

IDS = torch.arange(1, 8).view(1, 7)
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
CACHE = "past_key_values.0.key"


def lowered() -> LoweredModel:
    tokens = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in INPUTS]
    cache = helper.make_tensor_value_info(CACHE, TensorProto.FLOAT, ["b", 2, "past", 16])
    proto = ModelProto(graph=helper.make_graph([], "decoder", [*tokens, cache], []))
    return LoweredModel(proto, {}, tuple(INPUTS), True)


def test_a_prompt_has_an_empty_cache() -> None:
    feed = phase_feed(lowered(), INPUTS, "prefill")
    assert {name: array.shape for name, array in feed.items()} == {
        "input_ids": (1, 7),
        "attention_mask": (1, 7),
        CACHE: (1, 2, 0, 16),
    }


def test_a_token_has_a_cache_of_as_many_as_the_example() -> None:
    feed = phase_feed(lowered(), INPUTS, "decode")
    assert feed["input_ids"].tolist() == [[7]]
    assert feed["attention_mask"].tolist() == [[1] * 8]
    assert feed[CACHE].shape == (1, 2, 7, 16)
    assert np.abs(feed[CACHE]).max() > 0, "zeros may be faster than numbers"


def test_a_token_behind_a_sound_reads_none_and_has_its_keys() -> None:
    written = torch.arange(1, 8).view(1, 7)
    inputs = {"input_features": torch.rand(1, 4, 6), "decoder_input_ids": written}
    shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    own, heard = "past_key_values.0.decoder.key", "past_key_values.0.encoder.key"
    for name, sizes in ((own, ["b", 2, "past", 16]), (heard, [UNREAD, 2, 3, 16])):
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
    proto = ModelProto(graph=helper.make_graph([], "decoder", values, []))
    model = LoweredModel(proto, {}, tuple(inputs), True)
    first, later = (phase_feed(model, inputs, phase) for phase in ("prefill", "decode"))
    assert first["input_features"].shape == (1, 4, 6)
    assert first[own].shape == (1, 2, 0, 16)
    assert first[heard].shape == (0, 2, 3, 16)
    assert later["decoder_input_ids"].tolist() == [[7]]
    assert later["input_features"].shape == (0, 4, 6)
    assert later[own].shape == (1, 2, 6, 16)  # of the tokens before it
    assert later[heard].shape == (1, 2, 3, 16)


def test_a_mix_has_the_inputs_of_both_per_token() -> None:
    feed = phase_feed(lowered(), INPUTS, "mix:0.7")
    assert [weight for weight, _ in parts_of(feed)] == pytest.approx([0.7 / 7, 0.3])
    shapes = [part["input_ids"].shape for _, part in parts_of(feed)]
    assert shapes == [(1, 7), (1, 1)]
    assert mixed_note(INPUTS, "mix:0.7") == "mix:0.7 of 7 tokens"
    assert mixed_note(INPUTS, "decode") == ""


def test_the_other_phase_is_measured_too() -> None:
    assert list(other_feeds(lowered(), INPUTS, "mix:0.7")) == ["decode", "prefill"]
    assert list(other_feeds(lowered(), INPUTS, "decode")) == ["prefill"]
    assert list(other_feeds(lowered(), INPUTS, "prefill")) == ["decode"]
    assert other_feeds(lowered(), INPUTS, "") == {}


def test_a_token_is_one_vector_of_each_product() -> None:
    module = CompressibleModule("a", "linear", (8, 8), False, 7 * 64, 7, "", "mlp", None)
    modules = ModuleMap((module,), (), (), 64, 7 * 64)
    (one,) = at_phase(modules, INPUTS, "decode")
    assert (one.positions, one.macs) == (1, 64)
    assert at_phase(modules, INPUTS, "decode").total_macs == 7 * 64  # trainings read all tokens
    assert at_phase(modules, INPUTS, "prefill") is modules
    assert at_phase(modules, INPUTS, "mix:0.7") == at_phase(modules, INPUTS, "decode")


ASKED = {
    "input_ids": IDS,
    "attention_mask": torch.ones_like(IDS),
    "pixel_values": torch.rand(1, 3, 4, 4),
    "decoder_input_ids": torch.tensor([[8, 9]]),
}


def reader() -> LoweredModel:
    whole = lowered()
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["b", 3, 4, 4])
    written = helper.make_tensor_value_info("decoder_input_ids", TensorProto.INT64, ["b", "w"])
    whole.proto.graph.input.extend([pixels, written])
    return LoweredModel(whole.proto, {}, tuple(ASKED), True)


def test_a_token_behind_a_picture_has_none() -> None:
    feed = phase_feed(reader(), ASKED, "decode")
    assert {name: array.shape for name, array in feed.items()} == {
        "input_ids": (1, 0),
        "attention_mask": (1, 9),
        "pixel_values": (0, 3, 4, 4),
        "decoder_input_ids": (1, 1),
        CACHE: (1, 2, 9, 16),
    }
    assert feed["decoder_input_ids"].tolist() == [[9]]
    parts = parts_of(phase_feed(reader(), ASKED, "mix:0.9"))
    assert [weight for weight, _ in parts] == pytest.approx([0.9 / 9, 0.1])
    assert len(parts[0][1]["pixel_values"]) == 1


def test_a_picture_is_no_work_of_a_token() -> None:
    towers = ("vision", "language")
    modules = [
        CompressibleModule(t, "linear", (8, 8), False, 9 * 64, 9, t, "", None) for t in towers
    ]
    found = at_phase(ModuleMap(tuple(modules), (), (), 128, 1152), ASKED, "decode")
    assert [(one.positions, one.macs) for one in found] == [(1, 0), (1, 64)]


def test_padded_samples_are_left_out() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    left = unpadded({"input_ids": torch.arange(6).view(2, 3), "attention_mask": mask})
    assert isinstance(left, dict)
    assert left["input_ids"].tolist() == [[0, 1, 2]]
