"""Read lists and mappings that a table holds as text, as pandas and numpy write them."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from typing import Any

from autocompress.errors import TaskError

ENCLOSED = (("[", "]"), ("{", "}"))
CONSTANTS = {"nan": None, "null": None, "true": True, "false": False}


def unpacked(value: Any, column: str, place: str, or_text: bool = False) -> Any:
    """Return a value, read as a list or mapping where it is a text that looks like one.

    Args:
        value: of a record.
        column: that holds it, for messages.
        place: of the record, for messages.
        or_text: True if a plain text may stand there. Then only lists of texts and mappings are
            read, and "[unreadable]" or "[5]" stays a text.

    Returns:
        A list or mapping; any other value as it is.

    Raises:
        TaskError: the text looks like a list or mapping, but is neither in Python nor in JSON.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not any(text.startswith(first) and text.endswith(last) for first, last in ENCLOSED):
        return value
    try:
        held = _read(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        if or_text:
            return value
        raise TaskError(
            f"{place}: column {column!r} begins as a list or mapping but cannot be read as one, "
            f"got {text[:60]!r}; nearest: JSON"
        ) from None
    texts = isinstance(held, list) and all(isinstance(item, str) for item in held)
    return held if texts or isinstance(held, dict) or not or_text else value


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(_Plain().visit(ast.parse(_with_commas(text), mode="eval")))


class _Plain(ast.NodeTransformer):
    """Replace calls such as array([1], dtype=object) and np.int64(1) by what they hold."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        holder = function.value if isinstance(function, ast.Attribute) else None
        is_numpy = isinstance(holder, ast.Name) and holder.id in ("np", "numpy")
        is_array = isinstance(function, ast.Name) and function.id == "array"
        if not (is_numpy or is_array) or len(node.args) != 1:
            raise ValueError(ast.dump(node))
        return self.visit(node.args[0])  # type: ignore[no-any-return]

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in CONSTANTS:
            raise ValueError(node.id)
        return ast.Constant(CONSTANTS[node.id])


def _with_commas(text: str) -> str:
    """Return a text with commas between neighbours, which arrays of numpy are printed without."""
    tokens = tokenize.generate_tokens(io.StringIO(f"({text})").readline)
    words: list[str] = []
    after_value = False
    for token in tokens:
        if not token.string.strip():
            continue
        named = token.string in (*CONSTANTS, "True", "False", "None")
        value = named or token.type in (tokenize.STRING, tokenize.NUMBER)
        if after_value and (value or token.string in ("[", "{", "-", "+")):
            words.append(",")
        after_value = value or token.string in ("]", "}")
        words.append(token.string)
    return " ".join(words)
