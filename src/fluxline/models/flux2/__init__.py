"""FLUX.2: dev, klein 4B and 9B, and the klein base models."""
