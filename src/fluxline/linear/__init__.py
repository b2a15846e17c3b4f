"""What stands in for, or beside, a linear layer. Knows layers, and nothing of any model."""
