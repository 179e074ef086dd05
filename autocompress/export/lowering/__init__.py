"""Lower a candidate: replace weights of the float graph by compressed ones."""
