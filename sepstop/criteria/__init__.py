"""Label-free scores of a cloud of embeddings: a pure function and a thin class each."""

from sepstop.criteria.separability import Separability, h0_separability

CRITERIA: dict[str, type] = {"separability": Separability}

__all__ = ["CRITERIA", "Separability", "h0_separability"]
