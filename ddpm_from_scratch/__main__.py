"""`python -m ddpm_from_scratch` is the command line."""

from ddpm_from_scratch.cli import main

main()
