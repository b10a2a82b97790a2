"""Pickles as inert values: read and written without resolving a single global."""
