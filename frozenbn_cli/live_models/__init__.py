"""Models that are built and run: what --model names, its inputs, and how it is run."""
