"""Train a compressed model from the answers of the original one."""
