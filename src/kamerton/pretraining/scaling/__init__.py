"""Scaling laws: a grid of pretrainings, the fits of their losses, and what is best for a given amount of compute."""
