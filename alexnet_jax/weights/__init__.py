"""Weights from and to other programs' files."""
