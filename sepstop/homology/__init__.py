"""Exact 0-dimensional persistent homology of point clouds, batched, on the points' device."""

from sepstop.homology.h0 import check_points, h0_deaths, h0_dendrogram, h0_tree

__all__ = ["check_points", "h0_deaths", "h0_dendrogram", "h0_tree"]
