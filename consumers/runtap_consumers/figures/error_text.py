"""An error in words: `error_facts`, `error_text`."""

from __future__ import annotations


def error_facts(category: str | None, status_code: int | None, code: str | None) -> str:
    """What kind of error it is: `rate_limit, HTTP 429, rate_limit_exceeded`."""
    return ", ".join(fact for fact in (category, status_code and f"HTTP {status_code}", code) if fact)


def error_text(facts: str, raised_at: str | None, message: str | None) -> str:
    """Its message if the service sent one, else its facts; and where it was raised."""
    return f"{message or facts} (at {raised_at})" if raised_at else message or facts
