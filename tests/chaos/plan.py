"""
What befalls whom and when: worked out from a seed before anything starts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

EMITTERS, WORKERS = 4, 3
SESSION_SECONDS = 6
_FIRST_SECONDS, _QUIET_SECONDS = 8.0, 15.0


@dataclass(frozen=True)
class Fault:
    """
    What befalls whom, when, for how long.
    """

    at_seconds: float
    kind: str
    target: int
    seconds: float


@dataclass
class Plan:
    """
    How long, how many, how big. `only`: kinds of faults, empty for all; `every_seconds`: least and most between two.
    """

    seed: int
    seconds: float
    nodes: int
    events: int
    only: tuple[str, ...] = ()
    every_seconds: tuple[float, float] = (5.0, 10.0)

    def faults(self) -> list[Fault]:
        """
        The schedule: the same for the same seed.
        """
        dice = random.Random(self.seed)
        kinds = {
            "kill_worker": (WORKERS, 0.0, 4.0),
            "stop_worker": (WORKERS, 1.0, SESSION_SECONDS * 2.0),
            "leave_worker": (WORKERS, 0.0, 3.0),
            "kill_broker": (self.nodes, 0.0, 3.0),
            "stop_broker": (self.nodes, 1.0, 7.0),
            "kill_database": (1, 0.0, 2.0),
            "stop_database": (1, 1.0, 6.0),
            "cut_kafka": (1, 0.0, 0.0),
            "cut_database": (1, 0.0, 0.0),
            "stop_emitter": (EMITTERS, 1.0, 5.0),
            "add_partitions": (1, 0.0, 0.0),
        }
        found, at = [], _FIRST_SECONDS
        # Every kind comes round before one comes again.
        bag: list[str] = []
        while at < self.seconds - _QUIET_SECONDS:
            bag = bag or dice.sample(list(self.only or kinds), len(self.only or kinds))
            kind = bag.pop()
            targets, shortest, longest = kinds[kind]
            found.append(Fault(at, kind, dice.randrange(targets), dice.uniform(shortest, longest)))
            at += dice.uniform(*self.every_seconds)
        return found
