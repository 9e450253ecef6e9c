"""Runs as one HTML page: scores, decision, and the pool's embedding moving over checkpoints."""

from sepstop.report.html.write import write_page

__all__ = ["write_page"]
