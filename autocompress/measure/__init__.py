"""What reads a model and changes nothing."""
