"""Checkpoints: where they lie, and how their tensors get into a model."""
