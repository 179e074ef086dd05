"""Make Hugging Face families with tiny random weights, and inputs of any batch size and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from autocompress import Task
from benchmarks.bench import model_output

WORDS = 60
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """Tell how a model and its inputs are made.

    Attributes:
        make: returns the model, with random weights.
        inputs: (batch, length) -> inputs; a length of 0 is the usual one.
        lengths: two other lengths that the model takes; () where its inputs have none.
        dynamic: as `Task.dynamic`; lengths of word numbers and of their masks are free without it.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    lengths: tuple[int, ...] = ()
    dynamic: Mapping[str, Mapping[int, str]] | None = None


def ids(batch: int, length: int) -> Tensor:
    """Return (batch, length) of word numbers."""
    return torch.randint(
        5, WORDS, (batch, length or 8), generator=torch.Generator().manual_seed(31 * batch + length)
    )


def text(batch: int, length: int) -> dict[str, Tensor]:
    """Return word numbers, and a mask of lengths that differ."""
    words = ids(batch, length)
    lengths = words.shape[1] - torch.arange(batch) % 3
    return {
        "input_ids": words,
        "attention_mask": (torch.arange(words.shape[1]) < lengths[:, None]).long(),
    }


def causal(batch: int, length: int) -> dict[str, Tensor]:
    """Return word numbers and a mask of ones."""
    words = ids(batch, length)
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def noise(batch: int, *shape: int) -> Tensor:
    """Return (batch, *shape) of standard normal noise."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))


def pixels(side: int = 32) -> Callable[[int, int], dict[str, Tensor]]:
    """Return a function that gives square pictures of noise."""
    return lambda batch, length: {"pixel_values": noise(batch, 3, side, side)}


def both(side: int = 32) -> Callable[[int, int], dict[str, Tensor]]:
    """Return a function that gives text and pictures."""
    return lambda batch, length: {
        **text(batch, length),
        "pixel_values": noise(batch, 3, side, side),
    }


ENCODER = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
DECODER = {
    **ENCODER,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def bert() -> nn.Module:
    """Make a BERT classifier."""
    return hf.BertForSequenceClassification(hf.BertConfig(**ENCODER))


def distilbert() -> nn.Module:
    """Make a DistilBERT classifier."""
    config = hf.DistilBertConfig(
        vocab_size=WORDS,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=40,
        num_labels=3,
    )
    return hf.DistilBertForSequenceClassification(config)


def modernbert() -> nn.Module:
    """Make a ModernBERT classifier."""
    config = hf.ModernBertConfig(
        **ENCODER,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        local_attention=8,
    )
    return hf.ModernBertForSequenceClassification(config)


def roberta() -> nn.Module:
    """Make a RoBERTa classifier."""
    return hf.RobertaForSequenceClassification(
        hf.RobertaConfig(**{**ENCODER, "max_position_embeddings": 42})
    )


def vit() -> nn.Module:
    """Make a ViT classifier."""
    return hf.ViTForImageClassification(hf.ViTConfig(**VISION, num_labels=3))


def swin() -> nn.Module:
    """Make a Swin classifier."""
    config = hf.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=3,
    )
    return hf.SwinForImageClassification(config)


def convnext() -> nn.Module:
    """Make a ConvNeXt classifier."""
    return hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, num_labels=3)
    )


def resnet() -> nn.Module:
    """Make a ResNet classifier."""
    config = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], layer_type="basic", num_labels=3
    )
    return hf.ResNetForImageClassification(config)


def mobilenet_v2() -> nn.Module:
    """Make a MobileNetV2 classifier."""
    return hf.MobileNetV2ForImageClassification(
        hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=3)
    )


def segformer() -> nn.Module:
    """Make a SegFormer model."""
    config = hf.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=4,
    )
    return hf.SegformerForSemanticSegmentation(config)


def detr() -> nn.Module:
    """Make a DETR detector."""
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = hf.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=6,
        num_labels=3,
        auxiliary_loss=False,
    )
    return hf.DetrForObjectDetection(config)


def _tower(vocabulary: int = WORDS) -> dict[str, Any]:
    sizes = {
        name: ENCODER[name]
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    tokens = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    return {**sizes, **tokens, "vocab_size": vocabulary, "max_position_embeddings": 40}


def clip() -> nn.Module:
    """Make a CLIP model."""
    return hf.CLIPModel(
        hf.CLIPConfig(text_config=_tower(), vision_config=dict(VISION), projection_dim=24)
    )


def siglip() -> nn.Module:
    """Make a SigLIP model."""
    return hf.SiglipModel(hf.SiglipConfig(text_config=_tower(), vision_config=dict(VISION)))


def blip() -> nn.Module:
    """Make a BLIP model."""
    text_config = {**_tower(), "encoder_hidden_size": 32}
    return hf.BlipForImageTextRetrieval(
        hf.BlipConfig(
            text_config=text_config, vision_config=dict(VISION), image_text_hidden_size=24
        )
    )


def vilt() -> nn.Module:
    """Make a ViLT model."""
    config = hf.ViltConfig(
        **{**ENCODER, "num_labels": 5}, image_size=32, patch_size=8, max_image_length=-1
    )
    return hf.ViltForQuestionAnswering(config)


def wav2vec2() -> nn.Module:
    """Make a Wav2Vec2 model."""
    config = hf.Wav2Vec2Config(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    return hf.Wav2Vec2ForCTC(config)


def _whisper() -> Any:
    return hf.WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=20,
        max_target_positions=40,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


class WhisperClassifier(nn.Module):
    """Classify speech by Whisper's encoder and a linear head on the mean of its states.

    It maps (n, 8, 40) log-mel features to (n, 3) logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = hf.WhisperModel(_whisper()).get_encoder()
        self.head = nn.Linear(32, 3)

    def forward(self, input_features: Tensor) -> Tensor:
        """Return the output of the module."""
        return self.head(self.encoder(input_features).last_hidden_state.mean(1))


def whisper() -> nn.Module:
    """Make a Whisper model."""
    return hf.WhisperForConditionalGeneration(_whisper())


def gpt2() -> nn.Module:
    """Make a GPT-2 decoder."""
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=40, use_cache=False
        )
    )


def llama() -> nn.Module:
    """Make a Llama decoder."""
    return hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER))


def qwen3() -> nn.Module:
    """Make a Qwen3 decoder."""
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**DECODER))


def gemma3() -> nn.Module:
    """Make a Gemma 3 decoder."""
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**DECODER, sliding_window=16))


def mixtral() -> nn.Module:
    """Make a Mixtral decoder."""
    return hf.MixtralForCausalLM(
        hf.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
    )


def qwen2_moe() -> nn.Module:
    """Make a Qwen2-MoE decoder."""
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    }
    return hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**DECODER, **experts))


def t5() -> nn.Module:
    """Make a T5 model."""
    config = hf.T5Config(
        vocab_size=WORDS,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        use_cache=False,
        decoder_start_token_id=0,
    )
    return hf.T5ForConditionalGeneration(config)


IMAGE = 3  # the word that stands for a part of a picture


def _with_image(count: int) -> Callable[[int, int], dict[str, Tensor]]:
    """Return `count` words that stand for the picture, then text; a length counts both."""

    def inputs(batch: int, length: int) -> dict[str, Tensor]:
        words = ids(batch, length or count + 6)
        words[:, 1 : 1 + count] = IMAGE
        return {
            "input_ids": words,
            "attention_mask": torch.ones_like(words),
            "pixel_values": noise(batch, 3, 32, 32),
        }

    return inputs


def llava() -> nn.Module:
    """Make a LLaVA model."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**DECODER),
        image_token_index=IMAGE,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config)


def smolvlm() -> nn.Module:
    """Make a SmolVLM model."""
    config = hf.SmolVLMConfig(
        vision_config=dict(VISION),
        text_config={**DECODER, "model_type": "llama"},
        image_token_id=IMAGE,
        scale_factor=2,
        use_cache=False,
    )
    return hf.SmolVLMForConditionalGeneration(config)


def _smolvlm_inputs(batch: int, length: int) -> dict[str, Tensor]:
    inputs = _with_image(4)(batch, length)
    return {**inputs, "pixel_values": inputs["pixel_values"][:, None]}


def qwen2_vl() -> nn.Module:
    """Make a Qwen2-VL model."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = hf.Qwen2VLConfig(
        text_config={**DECODER, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
        image_token_id=IMAGE,
        video_token_id=4,
        vision_start_token_id=1,
        vision_end_token_id=2,
    )
    return hf.Qwen2VLForConditionalGeneration(config)


def _qwen2_vl_inputs(batch: int, length: int) -> dict[str, Tensor]:
    """One picture of 4 x 4 patches per text: 16 patches, merged into 4 words."""
    words = _with_image(4)(batch, length)
    patches = noise(batch, 16, 3 * 2 * 8 * 8).flatten(0, 1)
    grid = torch.tensor([[1, 4, 4]]).repeat(batch, 1)
    kinds = (words["input_ids"] == IMAGE).int()
    return {**words, "pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}


def _spoken(batch: int, length: int) -> dict[str, Tensor]:
    return {"input_features": noise(batch, 8, 40)}


def _to_text(batch: int, length: int) -> dict[str, Tensor]:
    return {**text(batch, length), "decoder_input_ids": ids(batch, length)[:, :5]}


FAMILIES: Mapping[str, Family] = {
    "bert": Family(bert, text, (5, 13)),
    "distilbert": Family(distilbert, text, (5, 13)),
    "modernbert": Family(modernbert, text, (5, 13)),
    "roberta": Family(roberta, text, (5, 13)),
    "vit": Family(vit, pixels()),
    "swin": Family(swin, pixels()),
    "convnext": Family(convnext, pixels(), ()),
    "resnet": Family(resnet, pixels()),
    "mobilenet_v2": Family(mobilenet_v2, pixels()),
    "segformer": Family(segformer, pixels()),
    "detr": Family(detr, pixels(64)),
    "clip": Family(clip, both(), (5, 13)),
    "siglip": Family(siglip, both(), (5, 13)),
    "blip": Family(blip, both(), (5, 13)),
    "vilt": Family(vilt, both(), (5, 13)),
    "wav2vec2": Family(
        wav2vec2,
        lambda batch, length: {"input_values": noise(batch, length or 400)},
        (300, 520),
        {"input_values": {1: "samples"}},
    ),
    "whisper_encoder": Family(WhisperClassifier, _spoken),
    "gpt2": Family(gpt2, causal, (5, 13)),
    "llama": Family(llama, causal, (5, 13)),
    "qwen3": Family(qwen3, causal, (5, 13)),
    "gemma3": Family(gemma3, causal, (5, 13)),
    "mixtral": Family(mixtral, causal, (5, 13)),
    "qwen2_moe": Family(qwen2_moe, causal, (5, 13)),
    "t5": Family(t5, _to_text, (6, 13)),
    "whisper": Family(
        whisper, lambda b, n: {**_spoken(b, n), "decoder_input_ids": ids(b, n)}, (5, 13)
    ),
    "llava": Family(llava, _with_image(16), (20, 29)),
    "smolvlm": Family(smolvlm, _smolvlm_inputs, (9, 17)),
    "qwen2_vl": Family(qwen2_vl, _qwen2_vl_inputs, (9, 17)),
}


def family_task(name: str, batches: Sequence[int] = (4, 4)) -> Task:
    """Return the task of a family: to answer as the float model does."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.make().eval()
    data = []
    for batch in batches:
        inputs = family.inputs(batch, 0)
        with torch.no_grad():
            outputs = model_output(model, inputs)
        data.append((inputs, outputs))
    return Task(name, model, family.inputs(4, 0), data, closeness, dynamic=family.dynamic)


def closeness(outputs: Tensor, targets: Tensor) -> float:
    """Return 1 - relative squared error of the float model's outputs."""
    return 1.0 - float((outputs - targets).square().mean() / targets.var().clamp_min(1e-12))
