"""Datasets of real runs, and experiments over them: what answers score, and what a good one costs."""
