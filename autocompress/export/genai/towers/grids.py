"""Give parts of pictures positions in rows and columns, as Qwen2-VL does (M-RoPE).

A picture takes as many positions as its longer side has parts, so that the text behind it has
lower positions than tokens before it. Rotary embeddings depend on differences of positions alone.
Here the text behind all pictures keeps its usual positions, and what stands before is moved up: so
a cache needs no memory of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from autocompress.export.genai.attention import ATTENTION
from autocompress.export.genai.towers.marks import piece
from autocompress.export.lowering.graph import CONTRIB

COSINES, SINES, INDEX = (f"grid/{name}" for name in ("cosines", "sines", "index"))
TABLES = (7, 8)  # places of cosines and sines among the inputs of attention
TURNED = """
turned (int64[n, length] number, int64[n, total] seen, float[half] rates, int64[half] axes)
    => (float[rows, half] cosines, float[rows, half] sines, int64[n, length] index)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    middle = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    saved = Constant <value_int = {saved}> ()
    columns = Constant <value_int = {columns}> ()
    length = Shape <start = 1, end = 2> (number)
    total = Shape <start = 1, end = 2> (seen)
    past = Sub (total, length)
    start = Squeeze (past)
    end = Squeeze (total)
    place = Range (start, end, one)
    begins = Equal (number, one)
    counted = Cast <to = 7> (begins)
    begun = CumSum (counted, one)
    pictures = ReduceSum (counted, middle)
    ahead = Sub (pictures, begun)
    moved = Mul (ahead, saved)
    word = Add (place, moved)
    part = Sub (number, one)
    row = Div (part, columns)
    row_start = Mul (row, columns)
    column = Sub (part, row_start)
    left = Sub (saved, part)
    corner = Add (word, left)
    in_row = Add (corner, row)
    in_column = Add (corner, column)
    is_part = Greater (number, zero)
    time_axis = Where (is_part, corner, word)
    row_axis = Where (is_part, in_row, word)
    column_axis = Where (is_part, in_column, word)
    each_time = Unsqueeze (time_axis, last)
    each_row = Unsqueeze (row_axis, last)
    each_column = Unsqueeze (column_axis, last)
    positions = Concat <axis = 2> (each_time, each_row, each_column)
    chosen = Gather <axis = 2> (positions, axes)
    position = Cast <to = 1> (chosen)
    angle = Mul (position, rates)
    table_shape = Constant <value_ints = [-1, {half}]> ()
    angles = Reshape (angle, table_shape)
    cosines = Cos (angles)
    sines = Sin (angles)
    count = Size (number)
    rows = Range (zero, count, one)
    shape = Shape (number)
    index = Reshape (rows, shape)
}}
"""


@dataclass(frozen=True)
class Grid:
    """Say where the parts of pictures lie, and what of a position each channel turns by.

    Attributes:
        rows: of parts in a picture.
        columns: of parts in a picture.
        rates: radians per position, for each pair of channels of a head.
        axes: for each pair of channels 0 for the position in time, 1 for the row, 2 for the
            column.
    """

    rows: int
    columns: int
    rates: tuple[float, ...]
    axes: tuple[int, ...]

    @property
    def parts(self) -> int:
        """Return the number of tokens of one picture."""
        return self.rows * self.columns

    def nodes(self, graph: GraphProto, number: str, seen: str) -> list[NodeProto]:
        """Return the nodes that turn queries and keys, which attention reads afterwards.

        Args:
            graph: of the decoder, which is changed.
            number: (n, length) name of the numbers of parts in their picture; 0 for words.
            seen: (n, total) name of the mask of all tokens.
        """
        saved = self.parts - max(self.rows, self.columns)
        text = TURNED.format(saved=saved, columns=self.columns, half=len(self.rates))
        known = {"number": number, "seen": seen, "rates": "grid/rates", "axes": "grid/axes"}
        ends = {"cosines": COSINES, "sines": SINES, "index": INDEX}
        nodes = piece(text, "grid", {**known, **ends})
        rates, axes = np.array(self.rates, np.float32), np.array(self.axes, np.int64)
        graph.initializer.append(numpy_helper.from_array(rates, known["rates"]))
        graph.initializer.append(numpy_helper.from_array(axes, known["axes"]))
        for layer in graph.node:
            if layer.op_type == ATTENTION:
                nodes += _turn_before(layer)
        return nodes


def _turn_before(node: NodeProto) -> list[NodeProto]:
    """Let attention read turned queries and keys, and turn none itself."""
    turned = []
    for i in range(2):
        output = f"{node.input[i]}/turned"
        inputs = [node.input[i], INDEX, COSINES, SINES]
        turned.append(
            helper.make_node("RotaryEmbedding", inputs, [output], name=output, domain=CONTRIB)
        )
        node.input[i] = output
    for place in TABLES:
        node.input[place] = ""
    kept = [one for one in node.attribute if one.name != "do_rotary"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("do_rotary", 0)])
    return turned
