"""Runs on disk: histories, checkpoints, selection."""
