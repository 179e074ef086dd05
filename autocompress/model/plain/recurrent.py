"""Split recurrent layers and cells into one module per weight matrix, which can be compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

# By the mode of the layer.
KERNELS: dict[str, Callable[..., Any]] = {
    "LSTM": torch._VF.lstm,
    "GRU": torch._VF.gru,
    "RNN_TANH": torch._VF.rnn_tanh,
    "RNN_RELU": torch._VF.rnn_relu,
}


class GateWeights(nn.Linear):
    """Hold one weight matrix of a recurrent layer, (gates * hidden, inputs), and its bias.

    The layer reads it; it is never called.
    """


class SplitRecurrent(nn.Module):
    """Compute the same as an nn.LSTM, nn.GRU or nn.RNN in eval mode.

    Children `ih_l0`, `hh_l0`, `ih_l0_reverse`, ... hold the weights in the order that PyTorch's
    kernel wants.
    """

    def __init__(self, source: nn.RNNBase) -> None:
        super().__init__()
        if source.mode not in KERNELS or source.proj_size > 0:
            raise ValueError("only LSTM, GRU and RNN without projections are covered")
        self.mode = source.mode
        self.num_layers = source.num_layers
        self.hidden_size = source.hidden_size
        self.batch_first = source.batch_first
        self.bidirectional = source.bidirectional
        self.has_bias = source.bias
        for name in self.gate_names():
            weight = getattr(source, f"weight_{name}").detach()
            gates = GateWeights(weight.shape[1], weight.shape[0], bias=source.bias, device="meta")
            gates.weight = nn.Parameter(weight.clone())
            if source.bias:
                gates.bias = nn.Parameter(getattr(source, f"bias_{name}").detach().clone())
            self.add_module(name, gates)
        self.requires_grad_(any(parameter.requires_grad for parameter in source.parameters()))

    def gate_names(self) -> list[str]:
        """Return the names of the children."""
        names = []
        for layer in range(self.num_layers):
            for end in ("", "_reverse") if self.bidirectional else ("",):
                names += [f"ih_l{layer}{end}", f"hh_l{layer}{end}"]
        return names

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Return output and last state, as the forward of the original does.

        Args:
            input: (B, T, inputs) if `batch_first`, else (T, B, inputs); or without the batch
                dimension.
            hx: the state as the original takes it; zeros if None.

        Returns:
            (output, state), the state of an LSTM being (hidden, cell).

        Raises:
            NotImplementedError: `input` is a packed sequence.
        """
        x, state = input, hx
        if isinstance(x, PackedSequence):
            raise NotImplementedError("packed sequences are not covered; pad the batch")
        if x.dim() == 2:
            batch = 0 if self.batch_first else 1
            states = _map_state(state, lambda part: part.unsqueeze(1))
            output, last = self.forward(x.unsqueeze(batch), states)
            squeezed = _map_state(last, lambda part: part.squeeze(1))
            assert squeezed is not None
            return output.squeeze(batch), squeezed
        if state is None:
            depth, batch = self.num_layers * (1 + self.bidirectional), 0 if self.batch_first else 1
            zeros = x.new_zeros((depth, x.shape[batch], self.hidden_size))
            state = (zeros, zeros) if self.mode == "LSTM" else zeros
        names = self.gate_names()
        weights: list[Tensor] = []
        for pair in zip(names[::2], names[1::2], strict=True):
            gates = [self.get_submodule(name) for name in pair]
            weights += [g.weight for g in gates]  # type: ignore[misc]
            weights += [g.bias for g in gates] if self.has_bias else []  # type: ignore[misc]
        options = (self.has_bias, self.num_layers, 0.0, False, self.bidirectional, self.batch_first)
        output, *states = KERNELS[self.mode](x, state, weights, *options)
        return output, tuple(states) if self.mode == "LSTM" else states[0]


def _map_state(
    state: Tensor | tuple[Tensor, Tensor] | None, change: Callable[[Tensor], Tensor]
) -> Tensor | tuple[Tensor, Tensor] | None:
    if isinstance(state, tuple):
        return change(state[0]), change(state[1])
    return None if state is None else change(state)


def cell_products(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Write a recurrent cell of a program as two products and the operators between its gates.

    Args:
        module: the program; new nodes go to the insertion point of its graph.
        node: an operator of nn.LSTMCell, nn.GRUCell or nn.RNNCell.

    Returns:
        The node of its result; (hidden, cell) for an LSTM.
    """
    inputs, state, ih, hh, *biases = node.args
    arithmetic = CELLS[str(node.target)]
    of_ih, of_hh = (*biases, None, None)[:2]
    hidden: Any = state[0] if arithmetic is _lstm_cell else state  # type: ignore[index]
    linear = torch.ops.aten.linear.default
    products = (
        module.graph.call_function(linear, (inputs, ih, of_ih)),
        module.graph.call_function(linear, (hidden, hh, of_hh)),
    )
    rest = state[1] if arithmetic is _lstm_cell else state  # type: ignore[index]
    return module.graph.call_function(arithmetic, (*products, rest))


def _lstm_cell(x: Tensor, h: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next hidden and cell states (Hochreiter and Schmidhuber 1997).

    Args:
        x: (n, 4 * hidden) product of the input.
        h: (n, 4 * hidden) product of the hidden state.
        cell: (n, hidden).
    """
    gate_i, gate_f, gate_g, gate_o = (x + h).chunk(4, -1)
    new = gate_f.sigmoid() * cell + gate_i.sigmoid() * gate_g.tanh()
    return gate_o.sigmoid() * new.tanh(), new


def _gru_cell(x: Tensor, h: Tensor, hidden: Tensor) -> Tensor:
    """Return the next hidden state (Cho et al. 2014), as `_lstm_cell` with 3 gates."""
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = x.chunk(3, -1), h.chunk(3, -1)
    new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
    return new + (update_x + update_h).sigmoid() * (hidden - new)


def _tanh_cell(x: Tensor, h: Tensor, hidden: Tensor) -> Tensor:
    return (x + h).tanh()


def _relu_cell(x: Tensor, h: Tensor, hidden: Tensor) -> Tensor:
    return (x + h).relu()


CELLS: dict[str, Callable[..., Any]] = {
    "aten.lstm_cell.default": _lstm_cell,
    "aten.gru_cell.default": _gru_cell,
    "aten.rnn_tanh_cell.default": _tanh_cell,
    "aten.rnn_relu_cell.default": _relu_cell,
}
