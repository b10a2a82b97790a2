"""Freezing and thawing the BatchNorm layers of live modules."""
