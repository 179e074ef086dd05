"""Estimate the loss of single changes in closed form, before any weight is compressed."""
