"""Export the program that a model runs, and put plain modules in the place of its operators.

The modules are named after their weights. `plain` uses the result as the plain model.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autocompress.model.known_structures import HEAD_ATTRIBUTES, SHARED_ATTRIBUTES, head_count
from autocompress.model.plain.operands import weight_names
from autocompress.model.plain.operators import Operator, operator_of
from autocompress.model.plain.rewrites.bags import plain_lookups
from autocompress.model.plain.rewrites.matrices import single_matrices
from autocompress.task.batches import Inputs
from autocompress.task.free_shapes import positional_name

COVERED: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.LSTM,
    nn.GRU,
    nn.RNN,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
)


def exported_program(model: nn.Module, inputs: Inputs, strict: bool) -> fx.GraphModule:
    """Return the program of a model, with every dimension free that it does not fix itself.

    Args:
        model: in eval mode.
        inputs: one batch of inputs; dimensions of size 1 stay fixed.
        strict: use the strict tracer of `torch.export`.

    Returns:
        A graph that takes the model's arguments by their names.
    """
    keywords = dict(inputs) if isinstance(inputs, Mapping) else {}
    arguments: Any = () if keywords else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    # By the names of forward, where *args and **kwargs are one argument each.
    bound = inspect.signature(model.forward).bind(*arguments, **keywords).arguments
    with torch.no_grad():
        program = torch.export.export(
            model, arguments, kwargs=keywords, dynamic_shapes=_shapes(bound), strict=strict
        )
    graph: fx.GraphModule = program.module(check_guards=False)
    _plain_signature(graph, model, arguments, keywords)
    return graph


def _shapes(value: Any) -> Any:
    """Return the dimensions that may be free in each tensor of nested arguments.

    Constants have no shape, and dimensions of size 1 stay fixed.
    """
    if isinstance(value, Mapping):
        return {name: _shapes(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(_shapes, value))
    if not isinstance(value, Tensor):
        return None
    return {i: torch.export.Dim.AUTO for i, size in enumerate(value.shape) if size > 1}


def _plain_signature(
    module: fx.GraphModule, model: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> None:
    """Give the program the model's arguments by name and an output of tuples and dicts.

    The tracer has flattened both.
    """
    graph = module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    result = pytree.tree_unflatten(list(output.args[0]), module._out_spec)  # type: ignore[arg-type]
    output.args = (_plain_result(result),)
    named = [(positional_name(model, i), value) for i, value in enumerate(arguments)]
    named += keywords.items()
    leaves = (node for node in list(graph.nodes) if node.op == "placeholder")
    for name, value in named:
        if not any(isinstance(value, kind) for kind in (Mapping, tuple, list)):
            node = next(leaves)
            node.target = name
            continue
        parts = [(path, next(leaves)) for path, _ in pytree.tree_flatten_with_path(value)[0]]
        with graph.inserting_before(parts[0][1] if parts else next(iter(graph.nodes))):
            whole = graph.placeholder(name)
        for path, leaf in parts:
            _take(graph, whole, path, leaf)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()


def _take(graph: fx.Graph, whole: fx.Node, path: Sequence[Any], leaf: fx.Node) -> None:
    """Read an entry of a nested argument in the place of the leaf that the tracer made of it."""
    part = whole
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(first):
        for step in path:
            index = step.key if isinstance(step, pytree.MappingKey) else step.idx
            part = graph.call_function(_item, (part, index))
    part.meta = dict(leaf.meta)
    leaf.replace_all_uses_with(part)
    graph.erase_node(leaf)


def _plain_result(value: Any) -> Any:
    """Return a result in tuples, lists and dicts, without entries that are None."""
    if isinstance(value, Mapping):
        return {name: _plain_result(part) for name, part in value.items() if part is not None}
    if isinstance(value, (tuple, list)):
        kind = type(value) if type(value) in (tuple, list) else tuple
        return kind(map(_plain_result, value))
    return value


def with_modules(module: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Return a program with plain modules in the place of its operators on weights.

    Args:
        module: the program; it is changed.
        model: the model that it was exported from, which states numbers of heads.

    Returns:
        The program with its modules, in eval mode.
    """
    plain_lookups(module)
    single_matrices(module)
    graph = module.graph
    places, names = _Places(module), weight_names(module, model)
    for node in list(graph.nodes):
        operator = operator_of(module, node, names)
        if operator is not None:
            _replace(graph, node, operator, places.put(operator))
    _follow_device(module)
    graph.eliminate_dead_code()
    graph.lint()
    plain = fx.GraphModule(module, graph)  # without the attributes of the tracer
    for name, source in model.named_modules():
        with contextlib.suppress(AttributeError):
            _tell_heads(source, plain.get_submodule(name))
    return plain.eval()


class _Places:
    """Put plain modules into the tree of a program under the names of their weights."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.names: dict[tuple[Any, ...], str] = {}

    def put(self, operator: Operator) -> str:
        """Return the name of the module of an operator.

        Args:
            operator: calls with the same key share a module.

        Returns:
            The name in the program.
        """
        if operator.key in self.names:
            return self.names[operator.key]
        *above, leaf = operator.name.split(".")
        owner: nn.Module = self.module
        for i, part in enumerate(above):
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            child = getattr(owner, part)
            if not isinstance(child, nn.Module) or isinstance(child, (*COVERED, nn.RMSNorm)):
                # Nothing can be placed below a module with a weight.
                leaf, above = "_".join([*above[i:], leaf]), above[:i]
                break
            owner = child
        held = getattr(owner, leaf, None)
        count = 1
        while held is not None and type(held) is not nn.Module:
            leaf, count = f"{leaf.removesuffix(f'_{count - 1}')}_{count}", count + 1
            held = getattr(owner, leaf, None)
        if held is not None:
            self._move_rest(held, operator, ".".join([*above, leaf]))
        setattr(owner, leaf, operator.module.eval())
        self.names[operator.key] = name = ".".join([*above, leaf])
        return name

    def _move_rest(self, held: nn.Module, operator: Operator, name: str) -> None:
        """Move other parameters of a module to the root, since a plain module takes its place.

        Such are a factor, or a weight that a branch reads.
        """
        moved = {}
        for path, value in (*held.named_parameters(), *held.named_buffers()):
            if getattr(operator.module, path, None) is value:
                continue
            new = f"{name}.{path}".replace(".", "_") + "_value"
            while hasattr(self.module, new):
                new += "_"
            moved[f"{name}.{path}"] = new
            if isinstance(value, nn.Parameter):
                self.module.register_parameter(new, value)
            else:
                self.module.register_buffer(new, value)
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and node.target in moved:
                node.target = moved[node.target]


def _replace(graph: fx.Graph, node: fx.Node, operator: Operator, name: str) -> None:
    """Call the module in the place of the operator."""
    with graph.inserting_before(node):
        called = graph.call_module(name, operator.inputs)
        called.meta = dict(node.meta)
        if operator.nested:  # an LSTM gives (output, (hidden, cell)), its operator three tensors
            first, rest = (graph.call_function(_item, (called, i)) for i in (0, 1))
            parts = [first, *(graph.call_function(_item, (rest, i)) for i in (0, 1))]
            for user in list(node.users):
                user.replace_all_uses_with(parts[user.args[1]])  # type: ignore[index]
                graph.erase_node(user)
    if not operator.nested:
        node.replace_all_uses_with(called)
    graph.erase_node(node)


def _item(values: Any, index: Any) -> Any:
    return values[index]


def _beside(tensor: Tensor, reference: Tensor) -> Tensor:
    return tensor.to(reference.device)


def _follow_device(module: fx.GraphModule) -> None:
    """Move tensors that the program makes itself to the device of its inputs."""
    graph = module.graph
    first = next(node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        if node.op == "call_function" and node.kwargs.get("device") is not None:
            with graph.inserting_after(node):
                own = graph.call_function(_beside, (node, first))
            own.meta = dict(node.meta)
            node.replace_all_uses_with(own, delete_user_cb=lambda user, own=own: user is not own)


def _tell_heads(source: nn.Module, place: nn.Module) -> None:
    """Write the number of heads that a module or its config states into the plain module."""
    for attributes in (HEAD_ATTRIBUTES, SHARED_ATTRIBUTES):
        count = head_count(source, attributes)
        if count is not None and type(place) is nn.Module:
            setattr(place, attributes[0], count)
