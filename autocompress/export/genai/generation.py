"""Generate tokens with a package, and compare them with the simulation of its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import NotComputableError
from autocompress.export.genai.phases import TOKENS, unpadded
from autocompress.task.batches import MASK, Inputs, to_device
from autocompress.task.calls import call_model

LENGTH = 16  # generated tokens
PROMPT = 16  # most tokens of the prompt
# Largest lead of the simulation's best token over the generated one, in root mean squares of the
# differences between the logits of the file and of the simulation.
LEAD = 5.0
EXACT = 1e-4  # least such difference, relative to the logits: sums of floats in another order


class Generated(NamedTuple):
    """Hold the tokens of a package beside those of the simulation.

    Attributes:
        equal: number of tokens that are the simulation's most probable ones.
        tokens: number of generated tokens.
        lead: largest lead of the simulation's best token over the generated one, as `LEAD` counts.
    """

    equal: int
    tokens: int
    lead: float


def greedy_tokens(folder: Path, prompt: list[int], count: int = LENGTH) -> list[int]:
    """Generate the most probable tokens behind a prompt with onnxruntime-genai.

    Args:
        folder: the package.
        prompt: tokens.
        count: most tokens to generate.

    Returns:
        The tokens, up to one that ends a text.
    """
    import onnxruntime_genai as genai  # an optional dependency

    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + count)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    tokens: list[int] = []
    while not generator.is_done() and len(tokens) < count:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def check_generation(
    folder: Path, session: Any, model: nn.Module, inputs: Inputs, feed: Any
) -> Generated:
    """Compare the tokens that a package generates with the simulation of its file.

    The simulation reads the prompt and the generated tokens at once. A token may differ from its
    most probable one only where the simulation's lead of that one is small against the differences
    between the logits of the file and of the simulation.

    Args:
        folder: the package.
        session: of its model.onnx.
        model: simulates the file.
        inputs: a batch; its first sample begins with the prompt.
        feed: returns the arrays of a batch by input name of the file.

    Returns:
        How many tokens are equal.

    Raises:
        NotComputableError: a token differs by more than roundings explain.
    """
    whole = unpadded(inputs)
    assert isinstance(inputs, Mapping)
    assert isinstance(whole, Mapping)
    prompt = [int(token) for token in whole[TOKENS][0][:PROMPT]]
    tokens = greedy_tokens(folder, prompt)
    read = torch.tensor([[*prompt, *tokens[:-1]]])
    batch = {name: read if name == TOKENS else torch.ones_like(read) for name in (TOKENS, MASK)}
    batch = {name: batch[name] for name in inputs}
    simulated = _logits(model, batch)[0, len(prompt) - 1 :]
    (logits,) = session.run([session.get_outputs()[0].name], feed(batch))
    written = np.asarray(logits)[0, len(prompt) - 1 :]
    least = EXACT * float(np.sqrt(np.mean(simulated**2)))
    difference = max(float(np.sqrt(np.mean((written - simulated) ** 2))), least)
    steps = np.arange(len(tokens))
    leads = (simulated.max(1) - simulated[steps, tokens]) / difference
    equal = int((simulated.argmax(1) == np.array(tokens)).sum())
    worst = int(leads.argmax())
    if not leads[worst] <= LEAD:
        raise NotComputableError(
            f"{folder}: onnxruntime-genai generates token {tokens[worst]} in step {worst + 1}, the "
            f"simulation {int(simulated[worst].argmax())}, which leads by {leads[worst]:.1f} times "
            f"the difference of their logits (at most {LEAD:g})"
        )
    return Generated(equal, len(tokens), float(leads[worst]))


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> NDArray[np.float32]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        output = call_model(model, to_device(batch, device))
    return np.asarray(output.float().cpu().numpy())
