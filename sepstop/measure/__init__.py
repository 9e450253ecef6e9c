"""A model and an unlabeled pool to records of scores."""
