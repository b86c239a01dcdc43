"""What is done with the network: ablation sweeps and their report, benchmarks, and the torture tests."""
