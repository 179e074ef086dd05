"""Round weights and activations to integers."""
