"""Images: from a folder or a TFDS data set to prepared records, augmented batches and ten views."""
