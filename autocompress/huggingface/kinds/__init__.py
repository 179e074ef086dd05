"""Turn a model folder and records into model, batches and metrics, one file per kind of task."""
