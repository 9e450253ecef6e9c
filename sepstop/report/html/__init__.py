"""HTML reports: scores, decision, and embeddings of the pool over the run."""

from sepstop.report.html.write import write_page

__all__ = ["write_page"]
