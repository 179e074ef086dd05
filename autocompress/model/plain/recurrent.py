"""nn.LSTM and nn.GRU with each weight matrix in a module of its own, so that each can be compressed by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class GateWeights(nn.Linear):
    """One weight matrix of a recurrent layer, (gates * hidden, inputs), and its bias; read by the layer, never called."""


class SplitRecurrent(nn.Module):
    """The same function as the nn.LSTM or nn.GRU `source` in eval mode.

    Children `ih_l0`, `hh_l0`, `ih_l0_reverse`, ... hold the weights in the order that PyTorch's kernel wants.
    """

    def __init__(self, source: nn.RNNBase) -> None:
        super().__init__()
        if source.mode not in ("LSTM", "GRU") or source.proj_size > 0:
            raise ValueError("only LSTM and GRU without projections are covered")
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

    def gate_names(self) -> list[str]:
        """Names of the children."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [
            f"{kind}_l{layer}{end}"
            for layer in range(self.num_layers)
            for end in directions
            for kind in ("ih", "hh")
        ]

    def forward(
        self, x: Tensor, state: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """As nn.LSTM.forward or nn.GRU.forward, with or without a batch dimension; packed sequences raise NotImplementedError."""
        if isinstance(x, PackedSequence):
            raise NotImplementedError("packed sequences are not covered; pad the batch")
        if x.dim() == 2:
            batch = 0 if self.batch_first else 1
            output, last = self.forward(
                x.unsqueeze(batch), _map_state(state, lambda part: part.unsqueeze(1))
            )
            squeezed = _map_state(last, lambda part: part.squeeze(1))
            assert squeezed is not None
            return output.squeeze(batch), squeezed
        if state is None:
            shape = (
                self.num_layers * (1 + self.bidirectional),
                x.shape[0 if self.batch_first else 1],
                self.hidden_size,
            )
            zeros = x.new_zeros(shape)
            state = (zeros, zeros) if self.mode == "LSTM" else zeros
        names = self.gate_names()
        weights: list[Tensor] = []
        for pair in zip(names[::2], names[1::2], strict=True):
            gates = [self.get_submodule(name) for name in pair]
            weights += [g.weight for g in gates]  # type: ignore[misc]
            weights += [g.bias for g in gates] if self.has_bias else []  # type: ignore[misc]
        options = (self.has_bias, self.num_layers, 0.0, False, self.bidirectional, self.batch_first)
        if isinstance(state, tuple):
            output, hidden, cell = torch._VF.lstm(x, state, weights, *options)
            return output, (hidden, cell)
        output, hidden = torch._VF.gru(x, state, weights, *options)
        return output, hidden


def _map_state(
    state: Tensor | tuple[Tensor, Tensor] | None, change: Callable[[Tensor], Tensor]
) -> Tensor | tuple[Tensor, Tensor] | None:
    if isinstance(state, tuple):
        return change(state[0]), change(state[1])
    return None if state is None else change(state)
