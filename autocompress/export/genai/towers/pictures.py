"""Join the graphs of a vision encoder and of a decoder with a cache into one that has towers.

The whole graph takes what the task's model takes, and a cache. It is searched, measured and checked
as one file. onnxruntime-genai runs its towers: vision encoder, embedding, decoder.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.parser import parse_graph

from autocompress.errors import ExportError
from autocompress.export.float_graph.subgraphs import (
    consumers,
    reads,
    remove_dead_nodes,
    rename_values,
    value_names,
)
from autocompress.export.float_graph.towers import Tensor, Tower, note_towers
from autocompress.export.genai.phases import PIXELS, TOKENS, WRITTEN
from autocompress.export.genai.towers.blocks import Blocks
from autocompress.export.genai.towers.grids import Grid
from autocompress.export.genai.towers.marks import number_parts, read_marks, wider_words
from autocompress.export.genai.towers.parts import (
    allow_no_sample,
    as_tensor,
    declare_versions,
    rename_encoder,
    take_nodes,
)
from autocompress.targets.device.sessions import DECODER, EMBEDDING, VISION
from autocompress.task.batches import CACHE, MASK

FEATURES, EMBEDDINGS, LOGITS = "image_features", "inputs_embeds", "logits"
# Values between the towers: tokens without the padding between prompt and answer, their mask with
# the tokens of the cache, and what the head reads.
READ, SEEN, CHOSEN = "joined/tokens", "joined/mask", "joined/chosen"
# Where parts of pictures are told from words: embeddings with and without the channel that tells
# them, and this channel.
WIDE, PLAIN, NUMBER = "embedded/words", "embedded/plain", "embedded/number"
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
    reading: Blocks | Grid | None = None,
) -> None:
    """Join two graphs; that of the decoder becomes the whole.

    Args:
        pictures: computes (parts of all pictures, width) of PIXELS, its only input.
        decoder: computes LOGITS of TOKENS, MASK and a cache; it is changed.
        table: name of the weight that is looked up.
        head: name of the weight whose products are the logits.
        part: number of the token that stands for a part of a picture.
        weights: names of the model's parameters and buffers, which the graphs have too.
        reading: what attention does with parts of pictures; None for the same as with words.

    Raises:
        ExportError: the decoder reads its tokens elsewhere than in the table.
    """
    graph, vision = decoder.graph, ModelProto()
    vision.CopyFrom(pictures)
    allow_no_sample(vision)
    if reading is not None:
        number_parts(vision.graph, reading.parts)
    ends = {vision.graph.output[0].name: FEATURES, vision.graph.input[0].name: PIXELS}
    rename_encoder(vision.graph, "pictures", ends, weights)
    lookup, product = _lookup(graph, table), _product(graph, head)
    width = next(tensor.dims[1] for tensor in graph.initializer if tensor.name == table)
    hidden, words, read = product.input[0], _words(graph, lookup), EMBEDDINGS
    known, marks, wide = words, list[NodeProto](), width
    if reading is not None:
        known, read, wide = WIDE, PLAIN, width + 1
        marks = [*wider_words(words, WIDE), *read_marks(EMBEDDINGS, PLAIN, NUMBER, width)]
        marks += reading.nodes(graph, NUMBER, SEEN)
    between = parse_graph(NODES.format(part=part, width=wide))
    own = {name: f"joined/{name}" for name in value_names(between)}
    ends = {name: name for name in (TOKENS, MASK, WRITTEN, FEATURES)}
    ends |= {"words": known, "hidden": hidden, "embeddings": EMBEDDINGS}
    rename_values(between, {**own, **ends})
    rename_values(graph, {MASK: SEEN})
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == words:
                node.input[i] = read
    lookup.input[1], product.input[0] = own["known"], CHOSEN
    take_nodes(graph, vision.graph, [*between.node, *marks])
    _declare_inputs(graph, vision.graph)
    declare_versions(decoder, vision)
    remove_dead_nodes(decoder)  # tables of positions that are not read
    note_towers(decoder, _towers(graph, wide, hidden))


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


def _words(graph: GraphProto, lookup: NodeProto) -> str:
    """Return the name of the embeddings of words, behind a factor that Gemma gives them."""
    readers = consumers(graph)[lookup.output[0]]
    if len(readers) == 1 and readers[0].op_type == "Mul":
        return str(readers[0].output[0])
    return str(lookup.output[0])


def _product(graph: GraphProto, head: str) -> NodeProto:
    """Return the product with the weight of the head."""
    turned = next(
        node.output[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] == head
    )
    products: list[NodeProto] = [node for node in graph.node if node.op_type == "MatMul"]
    return next(node for node in products if turned in node.input)


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


def _towers(graph: GraphProto, width: int, hidden: str) -> tuple[Tower, ...]:
    """Return the parts that onnxruntime-genai runs, with the names that it gives their ends."""
    floats, integers = TensorProto.FLOAT, TensorProto.INT64
    known = {value.name: value for value in (*graph.input, *graph.output)}
    pixels = as_tensor(known[PIXELS])
    features = Tensor(FEATURES, FEATURES, floats, ("parts", width))
    tokens = Tensor(READ, TOKENS, integers, ("batch", "length"))
    embeddings = Tensor(EMBEDDINGS, EMBEDDINGS, floats, ("batch", "length", width))
    mask = Tensor(SEEN, MASK, integers, ("batch", "all"))
    caches = tuple(as_tensor(known[name]) for name in known if name.startswith(CACHE))
    outputs = tuple(_of_last(as_tensor(value)) for value in graph.output)
    return (
        Tower(VISION, (pixels,), (features,)),
        Tower(EMBEDDING, (tokens, features), (embeddings,)),
        Tower(DECODER, (embeddings, mask, *caches), outputs, {CHOSEN: hidden}),
    )


def _of_last(output: Tensor) -> Tensor:
    """Return an output of a tower that computes the logits of the last token alone."""
    if output.name != LOGITS:
        return output
    return replace(output, shape=(output.shape[0], 1, output.shape[2]))
