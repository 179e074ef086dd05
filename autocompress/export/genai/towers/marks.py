"""Tell a decoder which of its inputs are parts of pictures.

onnxruntime-genai gives a decoder embeddings and no tokens. A further channel of the embeddings
holds 0 for a word, and for a part of a picture its number in the picture, from 1.
"""

from __future__ import annotations

from onnx import GraphProto, NodeProto
from onnx.parser import parse_graph

from autocompress.export.float_graph.subgraphs import rename_values, value_names

NUMBERED = """
numbered (float[parts, width] plain) => (float[parts, wide] marked) {{
    first = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    last = Constant <value_ints = [1]> ()
    each = Constant <value_int = {parts}> ()
    count = Shape <start = 0, end = 1> (plain)
    end = Squeeze (count)
    place = Range (first, end, step)
    own = Mod (place, each)
    number = Add (own, step)
    mark = Cast <to = 1> (number)
    column = Unsqueeze (mark, last)
    marked = Concat <axis = 1> (plain, column)
}}
"""
WIDER = """
wider (float[n, length, width] words) => (float[n, length, wide] wide_words) {
    one = Constant <value_ints = [1]> ()
    sizes = Shape <start = 0, end = 2> (words)
    shape = Concat <axis = 0> (sizes, one)
    no_mark = ConstantOfShape <value = float[1] {0}> (shape)
    wide_words = Concat <axis = 2> (words, no_mark)
}
"""
READ = """
read (float[n, length, wide] embeddings) => (float[n, length, width] plain, int64[n, length] number)
{{
    last = Constant <value_ints = [2]> ()
    widths = Constant <value_ints = [{width}, 1]> ()
    plain, mark = Split <axis = 2> (embeddings, widths)
    column = Cast <to = 7> (mark)
    number = Squeeze (column, last)
}}
"""


def piece(text: str, prefix: str, ends: dict[str, str]) -> list[NodeProto]:
    """Return the nodes of a graph that is written as text.

    Args:
        text: in the syntax of `onnx.parser`.
        prefix: what names of values begin with afterwards.
        ends: names of inputs and outputs.
    """
    graph = parse_graph(text)
    own = {name: f"{prefix}/{name}" for name in value_names(graph)}
    rename_values(graph, {**own, **ends})
    return list(graph.node)


def number_parts(pictures: GraphProto, parts: int) -> None:
    """Give the features of pictures a channel with the number of each part.

    Args:
        pictures: computes (parts of all pictures, width), its only output; it is changed.
        parts: of one picture.
    """
    (output,) = pictures.output
    ends = {"plain": output.name, "marked": f"{output.name}/marked"}
    pictures.node.extend(piece(NUMBERED.format(parts=parts), "numbered", ends))
    output.name = ends["marked"]
    output.type.tensor_type.shape.dim[1].dim_value += 1


def wider_words(words: str, wide: str) -> list[NodeProto]:
    """Return nodes that give embeddings of words the channel of parts.

    Args:
        words: name of the embeddings.
        wide: name of those with the channel.
    """
    return piece(WIDER, "wider", {"words": words, "wide_words": wide})


def read_marks(embeddings: str, plain: str, number: str, width: int) -> list[NodeProto]:
    """Return nodes that take the channel of parts from embeddings.

    Args:
        embeddings: name of those with the channel.
        plain: name of those without.
        number: name of the channel: 0 for words, else the number of a part.
        width: of the embeddings without the channel.
    """
    ends = {"embeddings": embeddings, "plain": plain, "number": number}
    return piece(READ.format(width=width), "marks", ends)
