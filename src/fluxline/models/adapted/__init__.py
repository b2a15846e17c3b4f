"""Families whose networks are diffusers': one adapter, and a record of what each family wants."""
