"""Helpers that know neither runs nor models."""
