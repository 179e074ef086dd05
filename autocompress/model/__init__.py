"""Find what can be compressed in a model: modules, channel groups, towers."""
