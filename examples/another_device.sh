#!/usr/bin/env bash
# Search for a device that has no PyTorch: its latencies are measured there, the search runs here.
# Run the first and the last command on this machine, the second one on the device, which needs
# Python with onnxruntime and numpy. Accuracy is measured here.
set -euo pipefail
autocompress export-probes examples/image_classifier.py:task --space cnn --to probes
python probes/measure.pyz
autocompress search examples/image_classifier.py:task --space cnn --target-table probes/measured.json --out reports/device
