"""Search candidates with an Optuna study: proposals, trials, limits, the verified front."""
