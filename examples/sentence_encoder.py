"""Compress a sentence encoder: a folder that save_pretrained wrote, and texts without labels.

The answers of the float model are the targets: accuracy is the mean cosine to its embeddings.

python examples/sentence_encoder.py ./my-encoder sentences.txt --out reports/encoder
"""

import argparse

import transformers

import autocompress as ac

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="model folder, also one of sentence-transformers")
parser.add_argument("texts", help="a text per line, such as those that you will embed")
parser.add_argument("--trials", type=int, default=40)
parser.add_argument("--space", default="transformer")  # a shipped space, or a file
parser.add_argument("--out", default="reports/encoder")
options = parser.parse_args()

task = ac.from_pretrained(options.folder, data=options.texts, task="feature-extraction")
result = ac.search(task, options.space, n_trials=options.trials, out=options.out)
best = f"{options.out}/best"
ac.export(result, result.front.fastest(max_accuracy_drop=0.01), best)

# The export is a folder with tokenizer and config; this is all that a server needs of it.
tokenizer = transformers.AutoTokenizer.from_pretrained(best)
session = ac.open_session(best)
with open(options.texts) as lines:
    texts = [line.strip() for _, line in zip(range(3), lines, strict=False)]
tokens = tokenizer(texts, padding=True, return_tensors="np")
feed = {one.name: tokens[one.name] for one in session.get_inputs()}
(embeddings,) = session.run(["sentence_embedding"], feed)
for text, embedding in zip(texts, embeddings, strict=True):
    print(text[:40], embedding[:4].round(3))
