"""Cells, budget, resumable store, verdict and report."""
