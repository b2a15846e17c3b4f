"""FLUX.1: schnell, dev and Krea."""
