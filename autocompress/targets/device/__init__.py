"""Measure on the device itself: needs only numpy and a runtime, so `export-probes` can ship it."""
