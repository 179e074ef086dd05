"""Hold the lines of Python that run each kind of task; words in capitals are filled in later."""

from __future__ import annotations

from dataclasses import dataclass, replace

ARRAYS = "ARRAYS"  # in lines: "np" or "pt"
WRITTEN = "decoder_input_ids"
LABELS = 'labels = AutoConfig.from_pretrained(".").id2label'
TOKENIZER = 'tokenizer = AutoTokenizer.from_pretrained(".")'
PROCESSOR = 'processor = AutoImageProcessor.from_pretrained(".")'
EXTRACTOR = 'processor = AutoFeatureExtractor.from_pretrained(".")'
PILLOW = "from PIL import Image"
PICTURE = 'picture = Image.open("picture.png").convert("MODE")'
PIXELS = "inputs = processor(images=picture, return_tensors=ARRAYS)"


@dataclass(frozen=True)
class Lines:
    """Hold the lines of one kind of task.

    Attributes:
        load: lines that open what makes inputs of texts, pictures or sounds.
        prepare: lines that make `inputs`.
        outputs: of the file that are read.
        show: lines that print a result.
        optimum: class of optimum that loads the folder; "" if no line is shown for it.
        imports: beside onnxruntime and transformers.
        show_optimum: lines that print a result of `outputs`.
        loading: further arguments of that class.
    """

    load: tuple[str, ...]
    prepare: tuple[str, ...]
    outputs: tuple[str, ...]
    show: tuple[str, ...]
    optimum: str = ""
    imports: tuple[str, ...] = ()
    show_optimum: tuple[str, ...] = ("print(outputs.logits)",)
    loading: str = ""


ONE_TEXT = ('inputs = tokenizer("A text.", return_tensors=ARRAYS)',)
WAVES = ("import numpy as np", "from scipy.io import wavfile")
SOUND = (
    'rate, sound = wavfile.read("sound.wav")  # SAMPLING',
    "sound = (sound / 32767).astype(np.float32)CUT",
    "inputs = processor(soundCLIP, sampling_rate=rateFILL, return_tensors=ARRAYS)",
)
BEST = ("print(labels[int(logits[0].argmax())])",)
LINES = {
    "text-classification": Lines(
        (TOKENIZER, LABELS),
        (
            'texts = ["A text."]  # of a pair: ["A text.", "Another one."]',
            "inputs = tokenizer(*texts, return_tensors=ARRAYS)",
        ),
        ("logits",),
        BEST,
        "ORTModelForSequenceClassification",
    ),
    "token-classification": Lines(
        (TOKENIZER, LABELS),
        ONE_TEXT,
        ("logits",),
        ("print([labels[int(i)] for i in logits[0].argmax(-1)])",),
        "ORTModelForTokenClassification",
    ),
    "question-answering": Lines(
        (TOKENIZER,),
        ('inputs = tokenizer("A question?", "A text with the answer.", return_tensors=ARRAYS)',),
        ("start_logits", "end_logits"),
        (
            "start, end = int(start_logits[0].argmax()), int(end_logits[0].argmax())",
            'print(tokenizer.decode(inputs["input_ids"][0][start : end + 1]))',
        ),
        "ORTModelForQuestionAnswering",
        show_optimum=("print(outputs.start_logits.argmax(), outputs.end_logits.argmax())",),
    ),
    "fill-mask": Lines(
        (TOKENIZER,),
        ('inputs = tokenizer(f"A {tokenizer.mask_token} text.", return_tensors=ARRAYS)',),
        ("logits",),
        (
            'place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)',
            "print(tokenizer.decode([int(logits[0, place].argmax())]))",
        ),
        "ORTModelForMaskedLM",
    ),
    "text-generation": Lines(
        (TOKENIZER,),
        ONE_TEXT,
        ("logits",),
        ("print(tokenizer.decode([int(logits[0, -1].argmax())]))  # the next token",),
        "ORTModelForCausalLM",
        show_optimum=("print(tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0]))",),
        loading=", use_cache=False",
    ),
    "image-classification": Lines(
        (PROCESSOR, LABELS),
        (PICTURE, PIXELS),
        ("logits",),
        BEST,
        "ORTModelForImageClassification",
        (PILLOW,),
    ),
    "image-segmentation": Lines(
        (PROCESSOR, LABELS),
        (PICTURE, PIXELS),
        ("logits",),
        ("print({labels[int(i)] for i in logits[0].argmax(0).flatten()})  # of a coarser grid",),
        "ORTModelForSemanticSegmentation",
        (PILLOW,),
    ),
    "object-detection": Lines(
        (PROCESSOR, LABELS),
        (PICTURE, "inputs = processor(images=pictureSQUARE, return_tensors=ARRAYS)"),
        ("class_logits", "pred_boxes"),
        (
            "found = SimpleNamespace(logits=torch.tensor(class_logits))",
            "found.pred_boxes = torch.tensor(pred_boxes)",
            "sizes = [(picture.height, picture.width)]",
            "(found,) = processor.post_process_object_detection(found, 0.5, sizes)",
            'for label, score, box in zip(found["labels"], found["scores"], found["boxes"]):',
            "    print(labels[int(label)], round(float(score), 3), box.tolist())  # in pixels",
        ),
        imports=("from types import SimpleNamespace", "import torch", PILLOW),
    ),
    "visual-question-answering": Lines(
        (TOKENIZER, PROCESSOR, LABELS),
        (
            'inputs = dict(tokenizer("A question?", return_tensors=ARRAYS))',
            PICTURE,
            "pixels = processor(images=pictureSQUARE, return_tensors=ARRAYS)",
            'inputs["pixel_values"] = pixels["pixel_values"]',
        ),
        ("logits",),
        BEST,
        imports=(PILLOW,),
    ),
    "zero-shot-image-classification": Lines(
        (TOKENIZER, PROCESSOR),
        (
            'texts = ["This is a photo of a cat.", "This is a photo of a dog."]',
            "inputs = dict(tokenizer(texts, PADDING, return_tensors=ARRAYS))",
            PICTURE,
            "pixels = processor(images=[picture] * len(texts), return_tensors=ARRAYS)",
            'inputs["pixel_values"] = pixels["pixel_values"]',
        ),
        ("image_embeds", "text_embeds"),
        ("print((image_embeds * text_embeds).sum(1))  # cosines",),
        "ORTModelForCustomTasks",
        (PILLOW,),
        ("print((outputs.image_embeds * outputs.text_embeds).sum(1))",),
    ),
    "audio-classification": Lines(
        (EXTRACTOR, LABELS),
        SOUND,
        ("logits",),
        BEST,
        "ORTModelForAudioClassification",
        WAVES,
    ),
    "automatic-speech-recognition": Lines(
        (EXTRACTOR, TOKENIZER),
        SOUND,
        ("logits",),
        ("print(tokenizer.decode(logits[0].argmax(-1)))",),
        "ORTModelForCTC",
        WAVES,
    ),
}
LINES["sentence-similarity"] = LINES["feature-extraction"] = Lines(
    (TOKENIZER,),
    (
        'texts = [PROMPT"A text.", PROMPT"Another one."]',
        "inputs = tokenizer(texts, padding=True, return_tensors=ARRAYS)",
    ),
    ("sentence_embedding",),
    ("print(sentence_embedding @ sentence_embedding.T)",),
    "ORTModelForFeatureExtraction",
    show_optimum=("print(outputs.last_hidden_state)  # of the tokens, before they are pooled",),
)
# Tasks of models with a decoder that reads what it has written: the most probable token follows.
WRITE = (
    "tokens = np.array([[START]])  # that a text begins with",
    "for _ in range(20):",
    '    feed["decoder_input_ids"] = tokens',
    "    RUN",
    "    tokens = np.concatenate([tokens, logits[:, -1:].argmax(-1)], 1)",
    "    if int(tokens[0, -1]) in (ENDS):  # the token behind a text",
    "        break",
    "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
)
NUMPY = "import numpy as np"
ANSWER = (
    "for _ in range(20):",
    '    feed["decoder_input_ids"] = tokens',
    *WRITE[3:-1],
    "print(tokenizer.decode(tokens[0, 1:], skip_special_tokens=True))",
)
DECODED = {
    "image-text-to-text": Lines(
        ('processor = AutoProcessor.from_pretrained(".")',),
        (
            "tokenizer = processor.tokenizer",
            f"{PICTURE}SQUARE",
            "ASKED",
            'tokens = inputs["input_ids"][:, -1:]  # where the answer begins',
            'for name in ("input_ids", "attention_mask"):',
            "    inputs[name] = inputs[name][:, :-1]",
        ),
        ("logits",),
        ANSWER,
        imports=(NUMPY, PILLOW),
    ),
    "text2text-generation": Lines((TOKENIZER,), ONE_TEXT, ("logits",), WRITE, imports=(NUMPY,)),
    "image-to-text": Lines(
        (PROCESSOR, TOKENIZER), (PICTURE, PIXELS), ("logits",), WRITE, imports=(NUMPY, PILLOW)
    ),
    "automatic-speech-recognition": replace(
        LINES["automatic-speech-recognition"], show=WRITE, optimum=""
    ),
}
