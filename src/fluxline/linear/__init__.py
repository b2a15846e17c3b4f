"""What may stand in for nn.Linear. Knows tensors: not models, files or requests."""
