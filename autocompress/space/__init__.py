"""Read search spaces: axes, rules per module, recovery."""
