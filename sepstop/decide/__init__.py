"""Series of scores to decisions; pure functions."""
