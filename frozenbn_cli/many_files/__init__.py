"""Converting many files: which they are, who converts them, and what became of each."""
