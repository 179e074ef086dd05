"""Turn a user's model into one whose products with weights are plain modules."""
