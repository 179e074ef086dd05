"""Train a small LLaVA on easy-VQA by the classes of transformers, and save it as a model folder.

It has about 5 million parameters, half of them in the vision tower, and takes some minutes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.kept import kept_folder

VERSION = 1  # of the folder: names it
SIDE, PATCH = 64, 16  # pixels; few patches, so that training takes minutes
WIDTH, DEPTH = 192, 5  # of both halves
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")
HELD_OUT = 200  # training images that validate, from the end, as in the built-in task
IMAGES, QUESTIONS = 16, 4  # of a step
RATE = 5e-4
TEMPLATE = (
    "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in m['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] + ' ' }}"
    "{% endfor %}{{ '</s> ' if m['role'] != 'user' }}{% endfor %}"
    "{{ 'ASSISTANT: ' if add_generation_prompt }}"
)


@dataclass(frozen=True)
class Split:
    """Hold the questions of a split.

    Attributes:
        images: (N, SIDE, SIDE, 3) uint8.
        questions: text of each question.
        answers: text of each answer.
        image_index: the image of each question.
    """

    images: np.ndarray
    questions: list[str]
    answers: list[str]
    image_index: np.ndarray


def read_splits() -> dict[str, Split]:
    """Return the splits "data", "validation" and "test" of the shipped data."""
    with files("autocompress.tasks").joinpath("data/easy_vqa.npz").open("rb") as file:
        data = dict(np.load(file, allow_pickle=False))
    texts = [question.replace("?", "").lower() for question in data["questions"].tolist()]
    border, count = len(data["train_images"]) - HELD_OUT, len(data["train_images"])
    places = {
        "data": ("train", 0, border),
        "validation": ("train", border, count),
        "test": ("test", 0, len(data["test_images"])),
    }
    splits = {}
    for name, (part, first, last) in places.items():
        index = data[f"{part}_image_index"].astype(int)
        rows = np.flatnonzero((index >= first) & (index < last))
        questions = [texts[i] for i in data[f"{part}_question"][rows]]
        answers = [str(data["answers"][i]) for i in data[f"{part}_answer"][rows]]
        images = data[f"{part}_images"][first:last]
        splits[name] = Split(images, questions, answers, index[rows] - first)
    return splits


def words_of(splits: dict[str, Split]) -> list[str]:
    """Return all words of questions and answers behind the special tokens."""
    words = set()
    for split in splits.values():
        words |= {word for text in (*split.questions, *split.answers) for word in text.split()}
    return [*SPECIAL, *sorted(words)]


def processor_of(words: list[str]) -> Any:
    """Return a processor of pictures and texts, with a template of conversations."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=64, **names
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = TEMPLATE
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return transformers.LlavaProcessor(
        CLIPImageProcessorPil(**sizes),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def new_model(words: list[str], width: int = WIDTH, depth: int = DEPTH) -> Any:
    """Return an untrained LLaVA."""
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 32,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=depth,
        num_attention_heads=width // 32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.index("<image>"),
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config)


@dataclass(frozen=True)
class Samples:
    """Hold a split as tensors.

    Attributes:
        pixels: (N, 3, SIDE, SIDE).
        tokens: (Q, length) of prompts with their picture and answers.
        labels: (Q, length), -100 but for answers.
        image_index: (Q,) the image of each question.
        named: (N, words) 1 for answers about an image but yes and no.
    """

    pixels: Tensor
    tokens: Tensor
    labels: Tensor
    image_index: Tensor
    named: Tensor

    @classmethod
    def of(cls, split: Split, processor: Any, words: list[str]) -> Samples:
        """Return the tensors of a split."""
        from PIL import Image

        index = {word: i for i, word in enumerate(words)}
        parts = (SIDE // PATCH) ** 2
        rows, labels = [], []
        for question, answer in zip(split.questions, split.answers, strict=True):
            prompt = ["USER:", *["<image>"] * parts, *question.split(), "ASSISTANT:"]
            rows.append([index[word] for word in (*prompt, answer, "</s>")])
            labels.append([-100] * len(prompt) + rows[-1][len(prompt) :])
        length = max(map(len, rows))
        named = torch.zeros(len(split.images), len(words))
        for i, answer in zip(split.image_index, split.answers, strict=True):
            if answer not in ("yes", "no"):
                named[i, index[answer]] = 1
        pictures = [Image.fromarray(image) for image in split.images]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return cls(
            pixels,
            torch.tensor([row + [0] * (length - len(row)) for row in rows]),
            torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
            torch.from_numpy(split.image_index),
            named,
        )


def train(model: Any, samples: Samples, steps: int, seed: int = 0) -> None:
    """Train a model for some steps, with a rate that rises and falls.

    A further head, which is thrown away, learns to name color and shape from the features of the
    pictures: the question alone explains two answers of three, so that the vision tower would
    learn late without it.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    naming = nn.Linear(model.config.text_config.hidden_size, samples.named.shape[1])
    parameters = [*model.parameters(), *naming.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.05)
    by_image = torch.argsort(samples.image_index, stable=True)
    counts = torch.bincount(samples.image_index, minlength=len(samples.pixels))
    starts = counts.cumsum(0) - counts
    for step in range(steps):
        images = torch.randint(len(samples.pixels), (IMAGES,), generator=generator)
        draw = torch.rand(IMAGES, QUESTIONS, generator=generator)
        rows = by_image[starts[images, None] + (draw * counts[images, None]).long()].flatten()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(step / steps / 0.1 + 1e-3, (1 - step / steps) / 0.9)
        loss = _loss(model, naming, samples, images, rows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"    step {step + 1} of {steps}, loss {float(loss):.4f}", flush=True)
    model.eval()


def _loss(model: Any, naming: nn.Module, samples: Samples, images: Tensor, rows: Tensor) -> Tensor:
    """Return the loss of answers, and of names of color and shape."""
    inner, tokens = model.model, samples.tokens[rows]
    states = inner.vision_tower(samples.pixels[images]).last_hidden_state[:, 1:]
    features = inner.multi_modal_projector(states)
    named = naming(features.amax(1)).log_softmax(1) * samples.named[images]
    words = inner.get_input_embeddings()(tokens)
    is_image = (tokens == model.config.image_token_id)[..., None]
    words = words.masked_scatter(is_image, features.repeat_interleave(QUESTIONS, 0))
    logits = model(inputs_embeds=words, attention_mask=(tokens > 0).long()).logits[:, :-1]
    labels = samples.labels[rows][:, 1:]
    answers = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    return answers - 0.3 * named.sum(1).mean()


def model_folder(steps: int) -> Path:
    """Return the folder of the trained model, made where there is none of so many steps yet."""
    folder = kept_folder() / f"small_llava_{VERSION}_{steps}"
    if folder.exists():
        return folder
    splits = read_splits()
    words = words_of(splits)
    processor = processor_of(words)
    torch.manual_seed(0)
    model = new_model(words)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"training a LLaVA of {count / 1e6:.2f} million parameters, {steps} steps", flush=True)
    train(model, Samples.of(splits["data"], processor, words), steps)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    unfinished.replace(folder)
    return folder


def write_splits(folder: Path, counts: dict[str, int]) -> dict[str, Path]:
    """Write pictures and data files, at most some questions of each split, drawn by a seed."""
    from PIL import Image

    paths = {}
    for name, split in read_splits().items():
        place = folder / f"{name}_pictures"
        place.mkdir(parents=True)
        order = np.random.default_rng(0).permutation(len(split.questions))[: counts[name]]
        lines = []
        for i in order:
            number = int(split.image_index[i])
            picture = place / f"{number}.png"
            if not picture.exists():
                Image.fromarray(split.images[number]).save(picture)
            row = {"image": str(picture), "question": split.questions[i]}
            lines.append(json.dumps({**row, "answer": split.answers[i]}))
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("\n".join(lines) + "\n")
    return paths
