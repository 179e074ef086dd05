"""Configs of language models as the model builder reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autocompress.errors import ExportError
from autocompress.export.genai.configs import builder_config, table_rates


def test_gemma_3_gets_two_bases_beside_the_rates_of_its_layers() -> None:
    rates: dict[str, Any] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = {"model_type": "gemma3_text", "rope_parameters": rates, "head_dim": 16}
    made = builder_config(config)
    bases = {"rope_type": "default", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert made == {**config, "rope_parameters": {**rates, **bases}}
    assert builder_config(made) == made


def test_the_language_model_of_qwen2_vl_is_one_of_texts() -> None:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 5e5}
    for kind in ("qwen2_vl_text", "qwen2_5_vl_text"):
        config = {"model_type": kind, "rope_parameters": rope, "hidden_size": 64}
        made = builder_config({**config, "architectures": [""]})
        assert made["architectures"] == ["Qwen2ForCausalLM"]
        assert made["model_type"] == "qwen2"
        assert made["hidden_size"] == 64
        assert made["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}


def test_windows_of_all_layers_are_told_by_layer() -> None:
    config = {"model_type": "mistral", "num_hidden_layers": 3, "sliding_window": 8}
    assert builder_config(config)["layer_types"] == ["sliding_attention"] * 3
    whole = {**config, "sliding_window": None}
    assert builder_config(whole) == whole


def test_gemma_3_of_older_configs_has_the_same_rates() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = {"model_type": "gemma3_text", "head_dim": 8, "rope_theta": 1e6, "rope_scaling": scaling}
    layers = {
        "full_attention": {**scaling, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new = {"model_type": "gemma3_text", "head_dim": 8, "rope_parameters": layers}
    assert builder_config(old)["rope_parameters"] == builder_config(new)["rope_parameters"]
    exponents = np.arange(0, 8, 2) / 8
    for config in (old, new):
        rates = table_rates(config)
        assert np.allclose(rates["cos_cache_global"], 1e6**-exponents / 8, rtol=1e-6)
        assert np.allclose(rates["cos_cache_local"], 1e4**-exponents, rtol=1e-6)


def test_rates_that_grow_with_a_text_are_refused_in_one_line() -> None:
    layers = {"full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}}
    config = {"model_type": "gemma3_text", "head_dim": 8, "rope_parameters": layers}
    with pytest.raises(ExportError, match="takes the rope_type default or linear, got 'dynamic'"):
        table_rates(config)
    assert table_rates({"model_type": "llama"}) == {}


def test_other_configs_stay_as_they_are() -> None:
    config = {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}
    assert builder_config(config) == config
