"""SQL of sums that are stored in two columns each."""

# Picodollars of a row of a table of costs, and of all rows.
COST = "cost_microdollars * 1000000 + cost_picodollars"
COST_SUM = "sum(cost_microdollars) * 1000000 + sum(cost_picodollars)"
# Nanoseconds of a row of a table of performance, and of all rows.
DURATION = "total_seconds * 1000000000 + total_ns"
DURATION_SUM = "sum(total_seconds) * 1000000000 + sum(total_ns)"
