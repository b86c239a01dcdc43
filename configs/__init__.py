"""Experiments: one file each, every number with its source."""
