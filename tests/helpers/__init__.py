"""Helpers of the tests: runs and kills, the origins as PyTorch networks, files as others write them."""
