"""What people do with a trained network: features, predictions, neighbours, figures, and a summary of any config."""
