"""TorchScript archives as text and inert values: read and rewritten, never run."""
