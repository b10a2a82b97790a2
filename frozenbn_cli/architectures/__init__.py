"""Which public architecture a set of BatchNorm layers is, and what that says of each of them."""

from frozenbn_cli.architectures.index import Architecture, Candidate, LayerKind
from frozenbn_cli.architectures.recognition import Match, RecognisedLayer, recognise

__all__ = [
    "Architecture",
    "Candidate",
    "LayerKind",
    "Match",
    "RecognisedLayer",
    "recognise",
]
