"""What runs on the device itself: it needs only numpy and a runtime, so that `export-probes` can send it there as one file."""
