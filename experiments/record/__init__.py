"""What finished runs leave in the repository: a small file for each sweep or study, in experiments/records."""
