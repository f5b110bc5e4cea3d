"""What workers compute. A projection is a function of the log, the prices and the admitted dimension values: no clock,
no driver, no Kafka. Each returns the rows that a batch adds (`runtap_consumers.projections.rollups.Changes`).
"""

from collections.abc import Callable

from runtap_consumers.projections.batch import Batch
from runtap_consumers.projections.contents import fold_contents
from runtap_consumers.projections.cost import fold_cost
from runtap_consumers.projections.emitter_reports import fold_ledger
from runtap_consumers.projections.errors import fold_errors
from runtap_consumers.projections.performance import fold_performance
from runtap_consumers.projections.rollups import Changes
from runtap_consumers.projections.runs import fold_runs
from runtap_consumers.projections.sessions import fold_sessions

Fold = Callable[[Batch, tuple[str, ...]], Changes]

PROJECTIONS: dict[str, Fold] = {
    "cost": fold_cost,
    "performance": fold_performance,
    "errors": fold_errors,
    "sessions": fold_sessions,
    "runs": fold_runs,
    "contents": fold_contents,
    "ledger": fold_ledger,
}

__all__ = ["PROJECTIONS", "Fold"]
