"""The Optuna study: proposals, trials, limits, the final front."""
