"""Clean the graphs that the exporter writes."""
