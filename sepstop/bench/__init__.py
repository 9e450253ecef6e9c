"""Recorded fine-tuning runs, and what criteria and policies are worth on them."""
