"""Propose candidates: sensitivities, surrogate, sampler."""
