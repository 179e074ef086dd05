"""Join the graphs of a vision encoder and of a decoder with a cache into one that has towers.

The whole graph takes what the task's model takes, and a cache. It is searched, measured and checked
as one file. onnxruntime-genai runs its towers: vision encoder, embedding, decoder.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)
from onnx.parser import parse_graph

from autocompress.errors import ExportError
from autocompress.export.float_graph.subgraphs import reads, rename_values, value_names
from autocompress.export.float_graph.towers import Tensor, Tower, note_towers
from autocompress.export.genai.phases import PIXELS, TOKENS, WRITTEN
from autocompress.targets.device.sessions import DECODER, EMBEDDING, VISION
from autocompress.task.batches import CACHE, MASK

FEATURES, EMBEDDINGS, LOGITS = "image_features", "inputs_embeds", "logits"
OPSET = 21  # of the exporter; the builder writes 22, which only adds types to operators
# Values between the towers: tokens without the padding between prompt and answer, their mask with
# the tokens of the cache, and what the head reads.
READ, SEEN, CHOSEN = "joined/tokens", "joined/mask", "joined/chosen"
NODES = """
joined (
    int64[n, length] input_ids, int64[n, seen] attention_mask, int64[n, written] decoder_input_ids,
    float[parts, width] image_features, float[n, all, width] words, float[n, all, width] hidden
) => (float[n, written, width] chosen) {{
    first = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    one = Constant <value_ints = [1]> ()
    minus_one = Constant <value_ints = [-1]> ()
    both = Concat <axis = 1> (input_ids, decoder_input_ids)
    prompt = Shape <start = 1, end = 2> (input_ids)
    written = Shape <start = 1, end = 2> (decoder_input_ids)
    seen = Shape <start = 1, end = 2> (attention_mask)
    all = Add (prompt, written)
    before = Sub (seen, prompt)
    own_mask = Slice (attention_mask, before, seen, one)
    length = ReduceSum (own_mask, one)
    count = Squeeze (all)
    place = Range (first, count, step)
    padding = Sub (prompt, length)
    shifted = Add (place, padding)
    end = Sub (all, one)
    bounded = Min (shifted, end)
    is_prompt = Less (place, length)
    index = Where (is_prompt, place, bounded)
    tokens = GatherElements <axis = 1> (both, index)
    written_shape = Shape (decoder_input_ids)
    ones = ConstantOfShape <value = int64[1] {{1}}> (written_shape)
    mask = Concat <axis = 1> (attention_mask, ones)
    picture = Constant <value_int = {part}> ()
    is_picture = Equal (tokens, picture)
    known = Where (is_picture, first, tokens)
    counted = Cast <to = 7> (is_picture)
    flat = Reshape (counted, minus_one)
    order = CumSum (flat, first)
    number = Sub (order, one)
    parts = Shape <start = 0, end = 1> (image_features)
    bounded_number = Min (number, parts)
    tokens_shape = Shape (tokens)
    number_of_token = Reshape (bounded_number, tokens_shape)
    row = Where (is_picture, number_of_token, parts)
    nothing_shape = Constant <value_ints = [1, {width}]> ()
    nothing = ConstantOfShape <value = float[1] {{0}}> (nothing_shape)
    rows = Concat <axis = 0> (image_features, nothing)
    features = Gather <axis = 0> (rows, row)
    is_part = Unsqueeze (is_picture, minus_one)
    embeddings = Where (is_part, features, words)
    answer = Squeeze (written)
    later = Range (first, answer, step)
    asked = Add (length, later)
    asked_row = Unsqueeze (asked, minus_one)
    chosen = GatherND <batch_dims = 1> (hidden, asked_row)
}}
"""


def join_towers(
    pictures: ModelProto,
    decoder: ModelProto,
    table: str,
    head: str,
    part: int,
    weights: Collection[str],
) -> None:
    """Join two graphs; that of the decoder becomes the whole.

    Args:
        pictures: computes (parts of all pictures, width) of PIXELS, its only input.
        decoder: computes LOGITS of TOKENS, MASK and a cache; it is changed.
        table: name of the weight that is looked up.
        head: name of the weight whose products are the logits.
        part: number of the token that stands for a part of a picture.
        weights: names of the model's parameters and buffers, which the graphs have too.

    Raises:
        ExportError: the decoder reads its tokens elsewhere than in the table.
    """
    graph, vision = decoder.graph, ModelProto()
    vision.CopyFrom(pictures)
    _allow_no_picture(vision)
    _rename_pictures(vision.graph, weights)
    lookup, product = _lookup(graph, table), _product(graph, head)
    width = next(tensor.dims[1] for tensor in graph.initializer if tensor.name == table)
    hidden, words = product.input[0], lookup.output[0]
    between = parse_graph(NODES.format(part=part, width=width))
    own = {name: f"joined/{name}" for name in value_names(between)}
    ends = {name: name for name in (TOKENS, MASK, WRITTEN, FEATURES)}
    ends |= {"words": words, "hidden": hidden, "embeddings": EMBEDDINGS}
    rename_values(between, {**own, **ends})
    rename_values(graph, {MASK: SEEN})
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == words:
                node.input[i] = EMBEDDINGS
    lookup.input[1], product.input[0] = own["known"], CHOSEN
    nodes = _sorted((*vision.graph.node, *between.node, *graph.node), (vision.graph, graph))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in reads(node)}
    graph.initializer.extend(one for one in vision.graph.initializer if one.name in used)
    _declare_inputs(graph, vision.graph)
    _declare_versions(decoder, vision)
    note_towers(decoder, _towers(graph, width, hidden))


def _allow_no_picture(pictures: ModelProto) -> None:
    """Let the number of pictures be the size that each Reshape finds by itself.

    ONNX Runtime finds no other size of tensors that are empty, as they are where a token is read
    behind its picture.
    """
    inferred = shape_inference.infer_shapes(pictures, data_prop=True).graph.value_info
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred}
    for node in pictures.graph.node:
        sizes = [size.dim_value for size in shapes.get(node.output[0], ())]
        if node.op_type != "Reshape" or sizes.count(0) != 1:
            continue
        wanted = np.array([size or -1 for size in sizes], np.int64)
        node.input[1] = f"{node.output[0]}/sizes"
        pictures.graph.initializer.append(numpy_helper.from_array(wanted, node.input[1]))


def _rename_pictures(graph: GraphProto, weights: Collection[str]) -> None:
    """Rename all values but the input, the output and the weights, which the decoder may have."""
    new = {name: f"pictures/{name}" for name in value_names(graph) if name not in weights}
    rename_values(graph, {**new, graph.output[0].name: FEATURES, graph.input[0].name: PIXELS})


def _lookup(graph: GraphProto, table: str) -> NodeProto:
    """Return the node that looks tokens up, which must be their only reader."""
    readers: list[NodeProto] = [node for node in graph.node if TOKENS in reads(node)]
    if len(readers) != 1 or readers[0].op_type != "Gather" or readers[0].input[0] != table:
        kinds = ", ".join(node.op_type for node in readers) or "nothing"
        raise ExportError(
            "export: the graph of onnxruntime-genai's model builder must read its tokens in the "
            f"table of words alone, got {kinds}; nearest: --target onnxruntime-cpu"
        )
    return readers[0]


def _product(graph: GraphProto, head: str) -> NodeProto:
    """Return the product with the weight of the head."""
    turned = next(
        node.output[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] == head
    )
    products: list[NodeProto] = [node for node in graph.node if node.op_type == "MatMul"]
    return next(node for node in products if turned in node.input)


def _sorted(nodes: Sequence[NodeProto], graphs: Sequence[GraphProto]) -> list[NodeProto]:
    """Return nodes such that each one comes behind those that it reads, and else in their order."""
    waiting, made = {name for node in nodes for name in node.output}, set[str]()
    ordered, left = list[NodeProto](), list(nodes)
    while left:
        later = []
        for node in left:
            if all(name in made or name not in waiting for name in reads(node)):
                ordered.append(_copy(node))
                made.update(node.output)
            else:
                later.append(node)
        left = later
    return ordered


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _declare_inputs(graph: GraphProto, pictures: GraphProto) -> None:
    """Give the whole graph the inputs of the task's model, in its order, and the cache."""
    caches = [value for value in graph.input if value.name.startswith(CACHE)]
    texts = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
        for name, length in ((TOKENS, "prompt"), (MASK, "seen"), (WRITTEN, "written"))
    ]
    inputs = [*texts[:2], pictures.input[0], texts[2], *caches]
    declared = helper.make_graph([], graph.name, inputs, []).input
    del graph.input[:]
    graph.input.extend(declared)


def _declare_versions(whole: ModelProto, pictures: ModelProto) -> None:
    """Name the operators' versions and the functions of both graphs."""
    domains = {entry.domain: entry.version for entry in pictures.opset_import}
    domains |= {entry.domain: entry.version for entry in whole.opset_import}
    del whole.opset_import[:]
    for domain, version in {**domains, "": OPSET}.items():
        whole.opset_import.add(domain=domain, version=version)
    whole.functions.extend(pictures.functions)


def _towers(graph: GraphProto, width: int, hidden: str) -> tuple[Tower, ...]:
    """Return the parts that onnxruntime-genai runs, with the names that it gives their ends."""
    floats, integers = TensorProto.FLOAT, TensorProto.INT64
    known = {value.name: value for value in (*graph.input, *graph.output)}
    pixels = _tensor(known[PIXELS])
    features = Tensor(FEATURES, FEATURES, floats, ("parts", width))
    tokens = Tensor(READ, TOKENS, integers, ("batch", "length"))
    embeddings = Tensor(EMBEDDINGS, EMBEDDINGS, floats, ("batch", "length", width))
    mask = Tensor(SEEN, MASK, integers, ("batch", "all"))
    caches = tuple(_tensor(known[name]) for name in known if name.startswith(CACHE))
    outputs = tuple(_tensor(value) for value in graph.output)
    return (
        Tower(VISION, (pixels,), (features,)),
        Tower(EMBEDDING, (tokens, features), (embeddings,)),
        Tower(DECODER, (embeddings, mask, *caches), outputs, {CHOSEN: hidden}),
    )


def _tensor(value: ValueInfoProto) -> Tensor:
    """Return an input or output of the whole graph that a tower has too."""
    kind = value.type.tensor_type
    shape = tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
    if value.name == LOGITS:
        shape = (shape[0], 1, shape[2])  # of the last token
    return Tensor(value.name, value.name, kind.elem_type, shape)
