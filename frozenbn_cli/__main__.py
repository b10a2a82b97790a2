"""Runs the command line as ``python -m frozenbn_cli``."""

from frozenbn_cli.cli import main

main()
