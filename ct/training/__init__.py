"""Training of torch models on Ray, bit for bit the same on any number of workers."""
