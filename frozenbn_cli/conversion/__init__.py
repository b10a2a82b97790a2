"""Converting one file: its terms, the steps, and TorchScript made of a live model."""
