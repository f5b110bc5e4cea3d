"""Correcting stored figures beside running workers: other prices (`reprice`), other folds (`rebuild`)."""
