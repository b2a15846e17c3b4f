"""FLUX.1: schnell, dev, Krea, and the variants that read pictures."""
