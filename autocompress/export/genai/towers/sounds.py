"""Join the graphs of an encoder of sounds and of its decoder into one that has two towers.

The decoder attends to keys and values that the encoder computes once. The whole graph takes a sound
and the tokens that were written, and a cache: keys and values of earlier tokens, and those of
sounds that were read before. It is searched, measured and checked as one file. onnxruntime-genai
runs its towers: the encoder once, the decoder for each token.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from autocompress.errors import ExportError
from autocompress.export.float_graph.subgraphs import rename_values
from autocompress.export.float_graph.towers import Tensor, Tower, note_towers
from autocompress.export.genai.phases import SOUND, TOKENS, WRITTEN
from autocompress.export.genai.towers.parts import (
    allow_no_sample,
    as_tensor,
    declare_versions,
    rename_encoder,
    take_nodes,
)
from autocompress.targets.device.sessions import DECODER, ENCODER
from autocompress.task.batches import CACHE, PRESENT, UNREAD

# Names in files of towers; the second one is onnxruntime-genai's of SOUND.
STATES, HEARD = "hidden_states", "audio_features"
# Names of keys and values with the place of the layer: in the builder's graph, in ours behind
# CACHE or PRESENT, and in those of the towers, which onnxruntime-genai is told.
OF_BUILDER = re.compile(r"(past|present)_(key|value)_(self|cross)_(\d+)")
KINDS = {"self": "decoder", "cross": "encoder"}


def join_sounds(sounds: ModelProto, decoder: ModelProto, weights: Collection[str]) -> None:
    """Join two graphs; that of the decoder becomes the whole.

    Args:
        sounds: computes of a sound, its only input, the states of the encoder, then keys and
            values (n, heads, length, width of a head) for each layer of the decoder.
        decoder: computes logits of TOKENS and keys and values; it is changed.
        weights: names of the model's parameters and buffers, which the graphs have too.

    Raises:
        ExportError: the decoder takes other keys and values than the encoder computes.
    """
    graph, encoder = decoder.graph, ModelProto()
    encoder.CopyFrom(sounds)
    allow_no_sample(encoder)
    ends = [value.name for value in (*graph.input, *graph.output)]
    rename_values(graph, {name: _own(name) for name in ends} | {TOKENS: WRITTEN})
    cross = [value for value in graph.input if ".encoder." in value.name]
    cross.sort(key=lambda value: _order(value.name))
    made = [value.name for value in encoder.graph.output[1:]]
    if not cross or len(made) != len(cross):
        raise ExportError(
            f"export: the decoder takes {len(cross)} keys and values of a sound, its encoder "
            f"computes {len(made)}; nearest: --target onnxruntime-cpu"
        )
    heard = {value.name: f"heard/{value.name}" for value in cross}  # of the sound of this call
    names = dict(zip(made, heard.values(), strict=True))
    names |= {encoder.graph.output[0].name: STATES, encoder.graph.input[0].name: SOUND}
    rename_encoder(encoder.graph, "sounds", names, weights)
    known = {value.name: value.name.replace(CACHE, PRESENT, 1) for value in cross}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = known.get(name, name)
    between = [
        helper.make_node("Concat", [name, heard[name]], [output], name=output, axis=0)
        for name, output in known.items()
    ]
    take_nodes(graph, encoder.graph, between)
    declare_versions(decoder, encoder)
    _declare(decoder, encoder, [value.name for value in cross])
    note_towers(decoder, _towers(decoder, heard, known))


def _own(name: str) -> str:
    """Return our name of an input or output of the builder's graph."""
    match = OF_BUILDER.fullmatch(name)
    if match is None:
        return name
    begin = CACHE if match[1] == "past" else PRESENT
    return f"{begin}{match[4]}.{KINDS[match[3]]}.{match[2]}"


def _order(name: str) -> tuple[int, str]:
    """Return the layer of keys or values, and which of both they are."""
    layer, _, kind = name.removeprefix(CACHE).partition(".")
    return int(layer), kind


def _declare(whole: ModelProto, encoder: ModelProto, cross: Collection[str]) -> None:
    """Give the whole graph a sound and tokens as inputs, and keys and values of sounds as outputs.

    The number of sounds that were read before is free: it is 0 where the graph reads one.
    """
    graph = whole.graph
    inputs, outputs = list[ValueInfoProto](), list[ValueInfoProto]()
    for value in graph.input:
        if value.name == WRITTEN:
            value.type.tensor_type.elem_type = TensorProto.INT64
        if value.name in cross:
            (made,) = (one for one in encoder.graph.output if one.name == f"heard/{value.name}")
            sizes = [size.dim_value for size in made.type.tensor_type.shape.dim][1:]
            for name, first, into in (
                (value.name, UNREAD, inputs),
                (value.name.replace(CACHE, PRESENT, 1), "batch_size", outputs),
            ):
                shape = [first, *sizes]
                into.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        else:
            inputs.append(value)
    inputs.sort(key=lambda value: value.name.startswith(CACHE))
    declared = helper.make_graph([], "", [encoder.graph.input[0], *inputs], outputs)
    del graph.input[:]
    graph.input.extend(declared.input)
    graph.output.extend(declared.output)


def _towers(whole: ModelProto, heard: dict[str, str], known: dict[str, str]) -> tuple[Tower, ...]:
    """Return the parts that onnxruntime-genai runs."""
    graph, floats = whole.graph, TensorProto.FLOAT
    inputs = {value.name: as_tensor(value) for value in graph.input}
    outputs = {value.name: as_tensor(value) for value in graph.output}
    of_sound, of_tokens = list[Tensor](), list[Tensor]()
    for name, output in known.items():
        shape = outputs.pop(output).shape
        of_sound.append(Tensor(heard[name], output, floats, shape))
        of_tokens.append(Tensor(output, name, floats, shape))
    samples, heads, length, width = of_sound[0].shape
    states = Tensor(STATES, STATES, floats, (samples, length, int(heads) * int(width)))
    # onnxruntime-genai gives tokens in this type, which lookups take too.
    tokens = Tensor(WRITTEN, TOKENS, TensorProto.INT32, inputs[WRITTEN].shape)
    own = [one for name, one in inputs.items() if name.startswith(CACHE) and name not in known]
    return (
        Tower(ENCODER, (replace(inputs[SOUND], name=HEARD),), (states, *of_sound)),
        Tower(DECODER, (tokens, *own, *of_tokens), tuple(outputs.values())),
    )
