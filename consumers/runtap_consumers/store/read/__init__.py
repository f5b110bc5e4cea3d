"""Reading figures back: one snapshot, no writes."""
