"""What FLUX.1 and FLUX.2 have in common."""
