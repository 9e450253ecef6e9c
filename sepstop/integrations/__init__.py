"""Callbacks for other trainers than that of transformers."""
