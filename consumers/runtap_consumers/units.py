"""Units of time and money. Instants and durations are integer nanoseconds, amounts integer picodollars."""

SECOND_NS = 10**9
MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
PICODOLLARS = 10**12


def minute_of(at_ns: int) -> int:
    """Start of the minute that holds an instant."""
    return at_ns - at_ns % MINUTE_NS
