"""What is done with the network: ablation sweeps, their report and records, the claims, benchmarks, torture tests."""
