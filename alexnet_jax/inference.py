"""One way through a network: images in, what is asked of it out."""
