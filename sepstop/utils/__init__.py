"""Shared helpers without knowledge of runs or models."""
