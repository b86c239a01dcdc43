"""The sweeps that come with the project: `alexnet sweep --sweep NAME` runs NAME.py."""
