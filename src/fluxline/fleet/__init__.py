"""Replicas of an engine, and what keeps them alive."""
