"""Fetch, fold, commit: the loop of a worker process."""
