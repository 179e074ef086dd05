"""Write a small model folder and data for each kind of task, and export a point of a search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import small_pictures
import torch
from scipy.io import wavfile
from small_folders import SPECIAL, WORDS, bert, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac

SIDE, RATE, SAMPLES = 16, 1000, 400
SPEECH_RATE = 16000  # of Whisper, whose filters need it
TWO = {"id2label": {0: "low", 1: "high"}, "label2id": {"low": 0, "high": 1}}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 4,
}


class Source(NamedTuple):
    """Hold a model folder, its data, and the metric of `from_pretrained`."""

    folder: Path
    data: Path
    metric: str


def labels(count: int) -> list[str]:
    return ["low" if i % 3 else "high" for i in range(count)]


def pictures(place: Path, count: int) -> list[str]:
    from PIL import Image

    draw = np.random.default_rng(0)
    names = []
    for i in range(count):
        pixels = draw.integers(0, 256, 3) + draw.integers(-60, 60, (SIDE, SIDE, 3))
        names.append(f"{i}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / names[-1])
    return names


def sounds(place: Path, count: int) -> list[str]:
    draw = np.random.default_rng(0)
    names = []
    for i in range(count):
        wave = np.sin(draw.uniform(0.1, 2.5) * np.arange(SAMPLES)) + draw.normal(0, 0.3, SAMPLES)
        names.append(f"{i}.wav")
        wavfile.write(place / names[-1], RATE, (wave.clip(-1, 1) * 32767).astype(np.int16))
    return names


def text_classification(place: Path) -> Source:
    model = transformers.BertForSequenceClassification(bert(**TWO))
    folder = save(place / "model", model, tokenizer())
    pipeline = transformers.pipeline("text-classification", model=str(folder))
    rows = [{"text": text, "label": pipeline(text)[0]["label"]} for text in texts(30)]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "accuracy")


def token_classification(place: Path) -> Source:
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    config = bert(id2label=names, label2id={name: i for i, name in names.items()})
    folder = save(place / "model", transformers.BertForTokenClassification(config), tokenizer())
    pipeline = transformers.pipeline("token-classification", model=str(folder), ignore_labels=[])
    rows = []
    for text in texts(24):
        tags = [entry["entity"] for entry in pipeline(text)]
        rows.append({"tokens": text.split(), "tags": tags})
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "accuracy")


def question_answering(place: Path) -> Source:
    folder = save(place / "model", transformers.BertForQuestionAnswering(bert()), tokenizer())
    rows = []
    for text in texts(20, 6, 12):
        rows.append({"question": "w1 w2", "context": text, "answers": text.split()[2]})
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "f1")


def fill_mask(place: Path) -> Source:
    folder = save(place / "model", transformers.BertForMaskedLM(bert()), tokenizer())
    rows = [{"text": text} for text in texts(24, 6, 12)]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "accuracy")


def text_generation(place: Path) -> Source:
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    folder = save(place / "model", transformers.LlamaForCausalLM(config), tokenizer())
    (place / "plays.txt").write_text("\n".join(texts(30)))
    return Source(folder, place / "plays.txt", "perplexity")


def sentence_similarity(place: Path) -> Source:
    folder = save(place / "model", transformers.BertModel(bert()), tokenizer())
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = []
    for i, kind in enumerate(kinds):
        path, name = f"{i}_{kind}" if i else "", f"sentence_transformers.models.{kind}"
        modules.append({"idx": i, "name": str(i), "path": path, "type": name})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    pairs = zip(texts(20), texts(20, seed=1), strict=True)
    rows = [{"sentence1": a, "sentence2": b, "score": i % 7} for i, (a, b) in enumerate(pairs)]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "spearman")


def image_classification(place: Path) -> Source:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, **TWO))
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    folder = save(place / "model", model, processor, spread=8.0)
    files = pictures(place, 24)
    rows = [{"image": file, "label": label} for file, label in zip(files, labels(24), strict=True)]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "accuracy")


def zero_shot_image_classification(place: Path) -> Source:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    size = {key: value for key, value in VIT.items() if not key.endswith("_size")}
    size |= {"hidden_size": 32, "intermediate_size": 64}
    text = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 64, **size, **ids}
    config = transformers.CLIPConfig(text_config=text, vision_config=VIT, projection_dim=16)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    model = transformers.CLIPModel(config)
    folder = save(place / "model", model, tokenizer(), processor, spread=6.0)
    pairs = zip(pictures(place, 24), texts(24, 3, 9), strict=True)
    rows = [{"image": file, "caption": text} for file, text in pairs]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "recall@1")


def image_segmentation(place: Path) -> Source:
    from PIL import Image
    from transformers.models.segformer.image_processing_pil_segformer import (
        SegformerImageProcessorPil,
    )

    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        **TWO,
    )
    processor = SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    model = transformers.SegformerForSemanticSegmentation(config)
    folder = save(place / "model", model, processor, spread=6.0)
    rows = []
    for i, file in enumerate(pictures(place, 16)):
        mask = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % (i + 2) == 0
        Image.fromarray(mask.astype(np.uint8)).save(place / f"mask-{i}.png")
        rows.append({"image": file, "mask": f"mask-{i}.png"})
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "mean_iou")


WAV2VEC = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def automatic_speech_recognition(place: Path) -> Source:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), num_feat_extract_layers=2, pad_token_id=0, **WAV2VEC
    )
    (place / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    words = transformers.Wav2Vec2CTCTokenizer(place / "vocab.json")
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    model = transformers.Wav2Vec2ForCTC(config)
    folder = save(place / "model", model, words, extractor, spread=6.0)
    rows = [{"audio": file, "sentence": "a bad cab"} for file in sounds(place, 12)]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "wer")


def audio_classification(place: Path) -> Source:
    config = transformers.Wav2Vec2Config(classifier_proj_size=16, **WAV2VEC, **TWO)
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    model = transformers.Wav2Vec2ForSequenceClassification(config)
    folder = save(place / "model", model, extractor, spread=6.0)
    files = sounds(place, 20)
    rows = [{"audio": file, "label": label} for file, label in zip(files, labels(20), strict=True)]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "accuracy")


def text2text_generation(place: Path) -> Source:
    config = transformers.T5Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    model = transformers.T5ForConditionalGeneration(config)
    folder = save(place / "model", model, tokenizer(), spread=2.0)
    pairs = zip(texts(12, 4, 9), texts(12, 3, 6, seed=1), strict=True)
    rows = [{"source": source, "target": target} for source, target in pairs]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "perplexity")


def image_to_text(place: Path) -> Source:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    decoder = bert(is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VIT), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    model = transformers.VisionEncoderDecoderModel(config=config)
    folder = save(place / "model", model, tokenizer(), processor, spread=3.0)
    pairs = zip(pictures(place, 12), texts(12, 3, 6), strict=True)
    rows = [{"image": file, "caption": text} for file, text in pairs]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "perplexity")


def object_detection(place: Path) -> Source:
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    sizes = {**VIT, "image_size": [SIDE, SIDE], "num_detection_tokens": 6}
    model = transformers.YolosForObjectDetection(transformers.YolosConfig(**sizes, **TWO))
    processor = YolosImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE})
    folder = save(place / "model", model, processor)
    rows = []
    for file, label in zip(pictures(place, 12), labels(12), strict=True):
        rows.append({"image": file, "objects": [{"bbox": [1, 2, 8, 9], "category": label}]})
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "map@0.5")


def visual_question_answering(place: Path) -> Source:
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    config = transformers.ViltConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        max_position_embeddings=64,
        max_image_length=-1,
        **VIT,
        **TWO,
    )
    processor = ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=4)
    model = transformers.ViltForQuestionAnswering(config)
    folder = save(place / "model", model, tokenizer(), processor, spread=5.0)
    rows = []
    for file, text, label in zip(pictures(place, 20), texts(20, 3, 9), labels(20), strict=True):
        rows.append({"image": file, "question": text, "answer": label})
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "accuracy")


def image_text_to_text(place: Path) -> Source:
    small_pictures.FAMILIES["llava"](place / "model")
    rows = small_pictures.picture_rows(place)
    return Source(place / "model", write_jsonl(place / "dev.jsonl", rows), "perplexity")


def transcription(place: Path) -> Source:
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=8, sampling_rate=SPEECH_RATE, hop_length=160, chunk_length=1, n_fft=400
    )
    config = transformers.WhisperConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        num_mel_bins=8,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    folder = save(place / "model", model, tokenizer(), extractor, spread=3.0)
    pairs = zip(sounds(place, 10), texts(10, 2, 6), strict=True)
    rows = [{"audio": file, "text": text} for file, text in pairs]
    return Source(folder, write_jsonl(place / "dev.jsonl", rows), "perplexity")


SOURCES: dict[str, Callable[[Path], Source]] = {
    "text-classification": text_classification,
    "token-classification": token_classification,
    "question-answering": question_answering,
    "fill-mask": fill_mask,
    "text-generation": text_generation,
    "sentence-similarity": sentence_similarity,
    "image-classification": image_classification,
    "zero-shot-image-classification": zero_shot_image_classification,
    "image-segmentation": image_segmentation,
    "audio-classification": audio_classification,
    "automatic-speech-recognition": automatic_speech_recognition,
}
# Those that optimum does not load; the name of the last one is not that of its task.
FURTHER: dict[str, Callable[[Path], Source]] = {
    "text2text-generation": text2text_generation,
    "image-to-text": image_to_text,
    "object-detection": object_detection,
    "visual-question-answering": visual_question_answering,
    "transcription": transcription,
}


# Its files have another form: a template of conversations, and one config of several parts.
ANSWERING: dict[str, Callable[[Path], Source]] = {"image-text-to-text": image_text_to_text}


def searched(kind: str, place: Path) -> tuple[ac.Task, ac.SearchResult]:
    """Search a small model of a kind of task for two trials, without training."""
    place.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    source = {**SOURCES, **FURTHER, **ANSWERING}[kind](place)
    arguments: dict[str, Any] = {"validation": source.data, "test": source.data, "batch_size": 5}
    task = ac.from_pretrained(source.folder, metric=source.metric, **arguments)
    space = {"modules": [{"match": "*", "weight_bits": [4, 8]}]}
    out = place / "run"
    return task, ac.search(task, space, n_trials=2, out=out, finalize_steps=0, quiet=True)
