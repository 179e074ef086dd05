"""Join the towers of models that hear or see to one graph with a cache."""
