"""Turn an exported point into a folder that transformers and its relatives load."""
