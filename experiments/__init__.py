"""Ablations, benchmarks and reports: what is measured with the network, rather than what it needs."""
