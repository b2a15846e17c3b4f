"""Tensor to tensor: the few operations worth a name of their own. No modules, no weights."""
