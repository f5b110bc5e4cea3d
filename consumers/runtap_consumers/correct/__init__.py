"""Pricing history again: what stored rows become under other prices (`rows`), and doing it (`transactions`).

A row is priced as a whole where its price class, time and tokens leave no doubt. Where they do, its parts are priced: a
day's hours, an hour's minutes, at last its single runs while they are kept; each only if they add up to the row. What
is then still in doubt is refused. Price classes stay as they are: they say what is known of the calls.
"""

from runtap_consumers.correct.outcome import Difference, Inexact, Outcome, Request
from runtap_consumers.correct.transactions import apply_repricing, preview_repricing

__all__ = ["Difference", "Inexact", "Outcome", "Request", "apply_repricing", "preview_repricing"]
