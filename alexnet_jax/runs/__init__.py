"""A run on disk: who owns its folder, what it was trained on, where it started, and reading it back."""
