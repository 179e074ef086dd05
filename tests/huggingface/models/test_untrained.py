"""Weights that a folder need not hold: answers stay those of the model that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_folders import SMALL, save, transformers
from torch import nn

from autocompress.errors import TaskError
from autocompress.huggingface.folder import open_folder
from autocompress.huggingface.loading import load_model
from autocompress.huggingface.options import Options

SOUNDS = {
    "vocab_size": 12,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
LAYERS = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "d_model": 32,
    "max_position_embeddings": 24,
}
TOKENS = torch.tensor([[5, 9, 7, 8, 6, 2]])


def without(folder: Path, ending: str) -> int:
    """Take weights out of a folder, and return how many."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.endswith(ending)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return len(weights) - len(kept)


def loaded(folder: Path, loader: str) -> nn.Module:
    return load_model(open_folder(Options(str(folder))), loader)


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "WavLM"])
def test_the_vector_for_hidden_parts_of_sounds(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**SOUNDS)
    model = getattr(transformers, f"{family}ForCTC")(config).eval()
    folder = save(tmp_path / "model", model)
    assert without(folder, "masked_spec_embed") == 1
    found = loaded(folder, "AutoModelForCTC")
    wave = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found(wave).logits, model(wave).logits)
    vectors = [w for name, w in found.named_parameters() if name.endswith("masked_spec_embed")]
    assert [bool(vector.any()) for vector in vectors] == [False]  # not drawn at random


def pegasus() -> Any:
    config = transformers.PegasusConfig(vocab_size=45, **LAYERS)
    return transformers.PegasusForConditionalGeneration(config)


def roformer() -> Any:
    return transformers.RoFormerForMaskedLM(transformers.RoFormerConfig(vocab_size=45, **SMALL))


def fsmt() -> Any:
    config = transformers.FSMTConfig(
        langs=["en", "de"], src_vocab_size=45, tgt_vocab_size=45, **LAYERS
    )
    return transformers.FSMTForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "loader", "tables"),
    [
        (pegasus, "AutoModelForSeq2SeqLM", 2),
        (fsmt, "AutoModelForSeq2SeqLM", 2),
        (roformer, "AutoModelForMaskedLM", 1),
    ],
)
def test_tables_of_sines_and_cosines(make: Any, loader: str, tables: int, tmp_path: Path) -> None:
    model = make().eval()
    model.save_pretrained(tmp_path)
    assert without(tmp_path, "embed_positions.weight") == tables
    found = loaded(tmp_path, loader)
    inputs = {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS} if tables == 2 else {})
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, model(**inputs).logits)


def test_tables_that_were_trained_are_needed(tmp_path: Path) -> None:
    config = transformers.BartConfig(vocab_size=45, **LAYERS)
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path)
    without(tmp_path, "decoder.embed_positions.weight")
    with pytest.raises(TaskError, match=r"the weights lack model\.decoder\.embed_positions\.weig"):
        loaded(tmp_path, "AutoModelForSeq2SeqLM")


@pytest.mark.parametrize("fill", [torch.zeros_like, torch.ones_like, torch.randn_like])
def test_tables_that_their_class_does_not_fill_are_needed(
    fill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.pegasus import modeling_pegasus

    pegasus().save_pretrained(tmp_path)
    without(tmp_path, "embed_positions.weight")
    table = modeling_pegasus.PegasusSinusoidalPositionalEmbedding
    monkeypatch.setattr(table, "create_weight", lambda self: fill(self.weight))
    with pytest.raises(TaskError, match=r"lack model\.decoder\.embed_positions\.weight and 1 oth"):
        loaded(tmp_path, "AutoModelForSeq2SeqLM")
