"""Make the inputs of the two phases of a decoder: reading a prompt, and writing the next token.

A mix of both has the inputs of both, with the weights that make their times one of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.export.lowering.lower import LoweredModel
from autocompress.model.modules import ModuleMap
from autocompress.targets.device.feeds import WeightedFeeds
from autocompress.targets.phases import DECODE, PHASES, PREFILL, prompt_share
from autocompress.task.batches import MASK, Inputs, cache_feed, map_inputs

Feed = Mapping[str, NDArray[Any]]
# Names of inputs. Where a model takes WRITTEN, TOKENS are those before it, and a text has both.
TOKENS, WRITTEN = "input_ids", "decoder_input_ids"
PIXELS, SOUND = MEDIA = ("pixel_values", "input_features")
READ_ONCE = ("vision", "audio", "projector")  # towers


def phase_feed(lowered: LoweredModel, inputs: Inputs, phase: str) -> Feed:
    """Return the feed at which the latency of a graph is measured.

    Args:
        lowered: the float graph.
        inputs: of the model, in its own structure.
        phase: "prefill" reads all tokens of `inputs` with an empty cache. "decode" reads the last
            one behind a cache of as many tokens as `inputs` has, of sounds one less. "mix:SHARE"
            does both: its time is that of a token, of which the share is part of a prompt. "" for
            graphs without a cache.

    Returns:
        Arrays by input name of the graph.
    """
    share = prompt_share(phase)
    if share is not None:
        # The last one is that of a token, whose shapes profiles show.
        prompt, token = (phase_feed(lowered, inputs, one) for one in (PREFILL, DECODE))
        length = _length(prompt)
        return WeightedFeeds(((share / length, prompt), (1 - share, token)))
    feed = lowered.feed(inputs)
    if phase != DECODE:
        return feed
    samples, tokens = len(feed[WRITTEN if WRITTEN in feed else TOKENS]), _length(feed)
    if WRITTEN in feed:
        decoded = next_token(feed, feed[WRITTEN][:, -1:], tokens)
    else:
        decoded = {TOKENS: feed[TOKENS][:, -1:], MASK: np.ones((samples, tokens + 1), np.int64)}
    if SOUND in feed:  # its last token is read; tables of positions end with the longest text
        tokens = max(1, tokens - 1)
    return {**feed, **decoded, **cache_feed(lowered.caches, samples, tokens)}


def next_token(feed: Feed, token: NDArray[Any], tokens: int) -> Feed:
    """Return what a model that sees or hears takes for a token behind a cache: no picture or sound.

    Args:
        feed: of its prompt.
        token: (n, 1).
        tokens: that the cache has.
    """
    following: dict[str, NDArray[Any]] = {WRITTEN: token}
    following |= {name: feed[name][:0] for name in MEDIA if name in feed}
    if TOKENS in feed:
        following[TOKENS] = feed[TOKENS][:, :0]
        following[MASK] = np.ones((len(token), tokens), np.int64)
    return following


def _length(inputs: Mapping[str, Any]) -> int:
    """Return the number of tokens of a text."""
    return sum(int(inputs[name].shape[1]) for name in (TOKENS, WRITTEN) if name in inputs)


def other_feeds(lowered: LoweredModel, inputs: Inputs, phase: str) -> dict[str, Feed]:
    """Return the feeds of the phases that are measured beside the one that decides, by name.

    Args:
        lowered: the float graph.
        inputs: of the model, in its own structure.
        phase: that decides; "" for graphs without a cache.
    """
    others = [other for other in PHASES if phase not in ("", other)]
    return {other: phase_feed(lowered, inputs, other) for other in others}


def at_phase(module_map: ModuleMap, inputs: Inputs, phase: str) -> ModuleMap:
    """Return the modules with the work that they have in a phase.

    Args:
        module_map: counted on all tokens of `inputs`.
        inputs: of the model, by name.
        phase: that decides; "" for graphs without a cache.

    Returns:
        The map with vectors and multiply-accumulates of the modules in one call, of a mix those of
        one token. `total_macs` stays that of the whole example: trainings compute all tokens.
    """
    if phase in ("", PREFILL) or not isinstance(inputs, Mapping):
        return module_map
    tokens, modules = _length(inputs), []
    has_media = any(name in inputs for name in MEDIA)
    for module in module_map:
        positions, macs = max(1, module.positions // tokens), module.macs // tokens
        if phase == DECODE and has_media and module.tower in READ_ONCE:
            positions, macs = 1, 0  # a picture or sound is part of a prompt
        modules.append(replace(module, positions=positions, macs=macs))
    return replace(module_map, modules=tuple(modules))


def mixed_note(inputs: Inputs, phase: str) -> str:
    """Return what the times of kernels depend on in a mix of phases, in words; "" for no mix.

    Args:
        inputs: of the model, by name.
        phase: that decides.
    """
    if prompt_share(phase) is None or not isinstance(inputs, Mapping):
        return ""
    return f"{phase} of {_length(inputs)} tokens"


def unpadded(inputs: Inputs) -> Inputs:
    """Return the samples without padding, behind which a decoder with a cache computes nothing.

    Args:
        inputs: a batch; without a mask it has no padding.

    Returns:
        The whole batch if all samples are padded.
    """
    if not isinstance(inputs, Mapping) or MASK not in inputs:
        return inputs
    whole = inputs[MASK].bool().all(1)
    return map_inputs(inputs, lambda tensor: tensor[whole]) if whole.any() else inputs
