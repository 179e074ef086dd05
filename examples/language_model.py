"""Compress a language model: a folder that save_pretrained wrote, and a plain text.

Accuracy is the negative perplexity of the next token, with the right text before it.

python examples/language_model.py ./my-model plays.txt --out reports/language
"""

import argparse

import autocompress as ac

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="model folder of a decoder, such as Llama")
parser.add_argument("text", help="the training text; validation and test are cut from its end")
parser.add_argument("--window", type=int, default=256, help="tokens that are read at once")
parser.add_argument("--trials", type=int, default=20)
parser.add_argument("--space", default="language")  # groups of 32 weights with zero points
parser.add_argument("--out", default="reports/language")
options = parser.parse_args()

task = ac.from_pretrained(options.folder, data=options.text, max_length=options.window)
result = ac.search(task, options.space, n_trials=options.trials, out=options.out)
base = result.front.baseline
print(f"float: {base.size_bytes / 1e6:.2f} MB, test perplexity {-base.test_accuracy:.2f}")
for point in result.front:
    m = point.measured
    print(
        f"{base.size_bytes / m.size_bytes:.2f}x smaller, "
        f"{base.latency_ms / m.latency_ms:.2f}x as fast, test perplexity {-m.test_accuracy:.2f}"
    )
# The smallest file whose perplexity is at most a hundredth higher.
point = result.front.smallest(max_accuracy_drop=0.01 * abs(base.accuracy))
ac.export(result, point, f"{options.out}/best")
