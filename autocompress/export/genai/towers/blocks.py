"""Let the parts of a picture see each other, as Gemma 3 does, in attention with a cache.

The kernel of attention sees what was read before. Here it gets a mask instead, which is added to
its scores: a token sees those before it, a part of a picture the whole picture too, and in some
layers no token farther back than a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, helper

from autocompress.export.genai.attention import ATTENTION
from autocompress.export.genai.towers.marks import piece

BIAS = 10  # place of the mask among the inputs of attention
CHANGED = ("causal", "local_window_size", "sliding_window_cache")  # its attributes
ALLOWED = """
allowed (int64[n, length] number, int64[n, total] seen)
    => (bool[n, length, total] allowed, int64[length, total] distance)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    middle = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    batch = Shape <start = 0, end = 1> (number)
    length = Shape <start = 1, end = 2> (number)
    total = Shape <start = 1, end = 2> (seen)
    past = Sub (total, length)
    start = Squeeze (past)
    end = Squeeze (total)
    place = Range (start, end, one)
    row = Unsqueeze (place, last)
    column = Range (zero, end, one)
    distance = Sub (row, column)
    before = GreaterOrEqual (distance, zero)
    begins = Equal (number, one)
    counted = Cast <to = 7> (begins)
    picture = CumSum (counted, one)
    is_part = Greater (number, zero)
    block = Where (is_part, picture, zero)
    past_shape = Concat <axis = 0> (batch, past)
    past_blocks = ConstantOfShape <value = int64[1] {0}> (past_shape)
    blocks = Concat <axis = 1> (past_blocks, block)
    key = Unsqueeze (blocks, middle)
    query = Unsqueeze (block, last)
    same = Equal (query, key)
    of_part = Greater (query, zero)
    together = And (same, of_part)
    allowed = Or (before, together)
}
"""
MASK = """
mask (bool[n, length, total] allowed, int64[length, total] distance)
    => (float[n, one, length, total] bias)
{{
    heads = Constant <value_ints = [1]> ()
    nothing = Constant <value_float = 0.0> ()
    never = Constant <value_float = -1000000000.0> ()
    {near}
    {seen}
    chosen = Where (seen, nothing, never)
    bias = Unsqueeze (chosen, heads)
}}
"""
NEAR = """window = Constant <value_int = {window}> ()
    near = Less (distance, window)"""
IN_WINDOW, EVERYWHERE = "seen = And (allowed, near)", "seen = Identity (allowed)"


@dataclass(frozen=True)
class Blocks:
    """Say what the tokens of a text with pictures see.

    Attributes:
        parts: tokens of one picture.
        windows: tokens that a token sees in each layer, with itself; 0 for all before it.
    """

    parts: int
    windows: tuple[int, ...]

    def nodes(self, graph: GraphProto, number: str, seen: str) -> list[NodeProto]:
        """Return the nodes of the masks, which the attention of a graph reads afterwards.

        Args:
            graph: of the decoder, which is changed.
            number: (n, length) name of the numbers of parts in their picture; 0 for words.
            seen: (n, total) name of the mask of all tokens.
        """
        ends = {"number": number, "seen": seen}
        nodes = piece(ALLOWED, "blocks", ends)
        shown = {name: f"blocks/{name}" for name in ("allowed", "distance")}
        for window in sorted(set(self.windows)):
            near = NEAR.format(window=window) if window else ""
            text = MASK.format(near=near, seen=IN_WINDOW if window else EVERYWHERE)
            nodes += piece(text, f"mask/{window}", {**shown, "bias": _bias(window)})
        layers = [node for node in graph.node if node.op_type == ATTENTION]
        for layer, window in zip(layers, self.windows, strict=True):
            _give_bias(layer, _bias(window))
        return nodes


def _bias(window: int) -> str:
    return f"mask/{window}/bias"


def _give_bias(node: NodeProto, bias: str) -> None:
    """Let attention see what a bias leaves, and nothing else."""
    kept = [one for one in node.attribute if one.name not in CHANGED]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("causal", 0)])
    node.attribute.append(helper.make_attribute("local_window_size", -1))
    inputs: Sequence[str] = [*node.input, *[""] * (BIAS + 1 - len(node.input))]
    del node.input[:]
    node.input.extend([*inputs[:BIAS], bias, *inputs[BIAS + 1 :]])
