"""Recorded fine-tuning runs, and the judgement of criteria and policies on them."""
