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
from autocompress.export.genai.builder import CONFIG
from autocompress.export.genai.package import PART
from autocompress.export.genai.phases import (
    MEDIA,
    PIXELS,
    SOUND,
    TOKENS,
    WRITTEN,
    next_token,
    unpadded,
)
from autocompress.export.genai.towers.sounds import HEARD
from autocompress.results.files import read_json
from autocompress.task.batches import CACHE, MASK, PRESENT, Inputs, to_device
from autocompress.task.calls import call_model

LENGTH = 16  # generated tokens
PROMPT = 16  # most tokens of the prompt
# First tokens of a transcript. In models of many languages these are the one that begins it, its
# language, the task and no times, if the tokenizer in the folder was saved with such a prefix.
BEGIN = 4
# Largest lead of the simulation's best token over the generated one, in root mean squares of the
# differences between the logits of the file and of the simulation. The file's own best token may
# have any.
LEAD = 5.0
EXACT = 1e-4  # least such difference, relative to the logits: sums of floats in another order
# The model's own options, such as a penalty on repeated tokens, are not part of its file.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


class Generated(NamedTuple):
    """Hold the tokens of a package beside those of the simulation.

    Attributes:
        equal: number of tokens that are the simulation's most probable ones.
        tokens: number of generated tokens.
        lead: largest lead of the simulation's best token over a generated one that is not the best
            of the file, as `LEAD` counts; 0 if there is none.
    """

    equal: int
    tokens: int
    lead: float


def greedy_tokens(
    folder: Path,
    prompt: list[int],
    count: int = LENGTH,
    media: Mapping[str, NDArray[np.float32]] | None = None,
) -> list[int]:
    """Generate the most probable tokens behind a prompt with onnxruntime-genai.

    Args:
        folder: the package.
        prompt: tokens.
        count: most tokens to generate.
        media: (1, ...) the picture or sound of the prompt by the name of its input; None for
            language models.

    Returns:
        The tokens, up to one that ends a text.
    """
    import onnxruntime_genai as genai  # an optional dependency

    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(**GREEDY, max_length=len(prompt) + count)
    generator = genai.Generator(model, parameters)
    if not media:
        generator.append_tokens(np.array([prompt], np.int32))
    else:
        named = genai.NamedTensors()
        named[TOKENS] = genai.Tensor(np.array([prompt], np.int32))
        for name, array in media.items():
            named[HEARD if name == SOUND else name] = genai.Tensor(np.ascontiguousarray(array))
        if PIXELS in media:
            parts = prompt.count(read_json(folder / CONFIG)["model"][PART])
            named["num_image_tokens"] = genai.Tensor(np.array([parts]))
        generator.set_inputs(named)
    tokens: list[int] = []
    while not generator.is_done() and len(tokens) < count:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def check_generation(
    folder: Path, session: Any, model: nn.Module, inputs: Inputs, feed: Any
) -> Generated:
    """Compare the tokens that a package generates with its file and with the simulation.

    The file reads the prompt at once, and then each generated token alone with the cache of those
    before, as onnxruntime-genai does. 8-bit inputs thus have the ranges that they have there. The
    simulation reads prompt and tokens at once. A token may differ from the simulation's most
    probable one where it is that of the file. Elsewhere the simulation's lead must be small against
    the differences between the logits of the file and of the simulation.

    Args:
        folder: the package.
        session: of its model.onnx.
        model: simulates the file.
        inputs: a batch; its first sample begins with the prompt.
        feed: returns the arrays of a batch by input name of the file.

    Returns:
        How many tokens are equal to those of the simulation.

    Raises:
        NotComputableError: a token differs by more than roundings explain.
    """
    whole = unpadded(inputs)
    assert isinstance(inputs, Mapping)
    assert isinstance(whole, Mapping)
    prompt = _prompt(whole)
    media = {name: whole[name][:1].cpu().numpy() for name in MEDIA if name in whole}
    tokens = greedy_tokens(folder, prompt, media=media)
    read = torch.tensor([[*prompt, *tokens[:-1]]])
    simulated = _logits(model, _batch(whole, read, len(prompt), len(tokens)))[0, -len(tokens) :]
    written = _step_by_step(session, whole, read, len(prompt), feed)
    least = EXACT * float(np.sqrt(np.mean(simulated**2)))
    difference = max(float(np.sqrt(np.mean((written - simulated) ** 2))), least)
    steps, chosen = np.arange(len(tokens)), np.array(tokens)
    leads = (simulated.max(1) - simulated[steps, chosen]) / difference
    leads = np.where(written.argmax(1) == chosen, 0.0, leads)
    equal = int((simulated.argmax(1) == chosen).sum())
    worst = int(leads.argmax())
    if not leads[worst] <= LEAD:
        raise NotComputableError(
            f"{folder}: onnxruntime-genai generates token {tokens[worst]} in step {worst + 1}, its "
            f"file {int(written[worst].argmax())}, the simulation {int(simulated[worst].argmax())},"
            f" which leads by {leads[worst]:.1f} times the difference of their logits (at most "
            f"{LEAD:g})"
        )
    return Generated(equal, len(tokens), float(leads[worst]))


def _prompt(inputs: Mapping[str, Tensor]) -> list[int]:
    """Return the tokens behind which a package writes, those of the first sample."""
    if SOUND in inputs:
        shown = inputs[WRITTEN][0, :BEGIN]
    elif PIXELS in inputs:  # a prompt has all parts of its picture
        parts = (inputs[TOKENS][0][inputs[MASK][0].bool()], inputs[WRITTEN][0, :1])
        shown = torch.cat(parts)
    else:
        shown = inputs[TOKENS][0, :PROMPT]
    return [int(token) for token in shown]


def _batch(
    inputs: Mapping[str, Tensor], read: Tensor, prompt: int, written: int
) -> dict[str, Tensor]:
    """Return the begin of a text in one batch.

    Args:
        inputs: a batch, for its names and its first picture.
        read: (1, length) the prompt and the tokens behind it.
        prompt: number of tokens of the prompt.
        written: number of tokens to predict.
    """
    text = read[:, : prompt + written - 1]
    if SOUND in inputs:
        return {SOUND: inputs[SOUND][:1], WRITTEN: text}
    before = text[:, : prompt - 1] if WRITTEN in inputs else text
    batch = {TOKENS: before, MASK: torch.ones_like(before), WRITTEN: text[:, prompt - 1 :]}
    if PIXELS in inputs:
        batch[PIXELS] = inputs[PIXELS][:1]
    return {name: batch[name] for name in inputs}


def _step_by_step(
    session: Any, inputs: Mapping[str, Tensor], read: Tensor, prompt: int, feed: Any
) -> NDArray[np.float32]:
    """Return the logits behind the prompt and behind each later token, read with a cache.

    Args:
        session: of the file.
        inputs: a batch, for its names.
        read: the prompt and the tokens behind it.
        prompt: number of tokens of the prompt.
        feed: returns the arrays of a batch by input name of the file.
    """
    names = [output.name for output in session.get_outputs()]
    kept: dict[str, NDArray[np.float32]] = {}  # keys and values of what was read
    start, rows = 0, list[NDArray[np.float32]]()
    whole = feed(_batch(inputs, read, prompt, 1))
    for end in range(prompt, read.shape[1] + 1):
        arrays = {**whole, **_behind(whole, read, end, start), **kept}
        outputs = dict(zip(names, session.run(names, arrays), strict=True))
        rows.append(np.asarray(outputs[names[0]])[0, -1])
        kept = {
            name: outputs[name.replace(CACHE, PRESENT, 1)]
            for name in arrays
            if name.startswith(CACHE)
        }
        start = end
    return np.stack(rows)


def _behind(whole: Mapping[str, Any], read: Tensor, end: int, start: int) -> Mapping[str, Any]:
    """Return the inputs of the tokens that a cache of the `start` before them has not."""
    if start == 0:
        return {}
    tokens = read[:, start:end].numpy()
    if WRITTEN in whole:
        return next_token(whole, tokens, start)
    own = {TOKENS: tokens, MASK: np.ones((1, end), tokens.dtype)}
    return {name: own[name] for name in own if name in whole}


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> NDArray[np.float32]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        output = call_model(model, to_device(batch, device))
    return np.asarray(output.float().cpu().numpy())
