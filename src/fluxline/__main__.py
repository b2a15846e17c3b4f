"""`python -m fluxline`: the command line."""

from fluxline.cli import main

main()
