"""What befalls whom and when: worked out from a seed before anything starts."""

from __future__ import annotations

import random
from dataclasses import dataclass

# One of the services asks a model server over HTTP, one is killed now and then.
EMITTERS, ASKING, MORTAL = 4, 2, 3
_FIRST_SECONDS, _QUIET_SECONDS = 8.0, 15.0
# In ten minutes.
_STORM = {"kill_worker": 200, "stop_worker": 20, "leave_worker": 100}
_STORM_SECONDS = 600.0
# Faults of one wave befall within so long.
_SURGE_SECONDS = 0.5
# What a takeover may take beside the session timeout.
TAKEOVER_SECONDS = 2.0
# Of isolated kills: how long a worker stays dead beyond that, and what it has then to start, to join and to settle.
_LATE_SECONDS, _RETURN_SECONDS = 1.0, 5.0


@dataclass(frozen=True)
class Fault:
    """What befalls whom, when, for how long."""

    at_seconds: float
    kind: str
    target: int
    seconds: float


@dataclass
class Plan:
    """How long, how many, how big. `only`: kinds of faults, empty for all; `every_seconds`: least and most between two;
    `session_seconds`: how long a worker may be silent.
    """

    seed: int
    seconds: float
    nodes: int
    events: int
    workers: int = 3
    partitions: int = 6
    session_seconds: float = 6.0
    is_storm: bool = False
    is_isolated: bool = False
    only: tuple[str, ...] = ()
    every_seconds: tuple[float, float] = (5.0, 10.0)

    def faults(self) -> list[Fault]:
        """The schedule: the same for the same seed."""
        dice = random.Random(self.seed)
        if self.is_isolated:
            return self._kills_one_by_one(dice)
        return self._storm(dice) if self.is_storm else self._mixture(dice)

    def _mixture(self, dice: random.Random) -> list[Fault]:
        kinds = {
            **self._worker_faults(),
            # A broker is chosen by a partition that it leads.
            "kill_broker": (self.partitions, 0.0, 3.0),
            "stop_broker": (self.partitions, 1.0, 7.0),
            "kill_database": (1, 0.0, 2.0),
            "stop_database": (1, 1.0, 6.0),
            "cut_kafka": (1, 0.0, 0.0),
            "cut_database": (1, 0.0, 0.0),
            "stop_emitter": (EMITTERS, 1.0, 5.0),
            "kill_emitter": (1, 0.0, 3.0),
            # Killed while Kafka is away for so long that there is a spool.
            "orphan_spool": (1, 7.0, 9.0),
            "add_partitions": (1, 0.0, 0.0),
        }
        found, at = [], _FIRST_SECONDS
        # Every kind comes round before one comes again.
        bag: list[str] = []
        while at < self.seconds - _QUIET_SECONDS:
            bag = bag or dice.sample(list(self.only or kinds), len(self.only or kinds))
            found.append(_roll(dice, at, bag.pop(), kinds))
            at += dice.uniform(*self.every_seconds)
        return found

    def _kills_one_by_one(self, dice: random.Random) -> list[Fault]:
        """Kills of workers, each after the one before was taken over and is back, so that no other rebalance is
        measured.
        """
        dead_seconds = self.session_seconds + TAKEOVER_SECONDS + _LATE_SECONDS
        found, at = [], _FIRST_SECONDS
        while at < self.seconds - _QUIET_SECONDS:
            found.append(Fault(at, "kill_worker", dice.randrange(self.workers), dead_seconds))
            # At any moment between two heartbeats.
            at += dead_seconds + _RETURN_SECONDS + dice.uniform(0, 1)
        return found

    def _storm(self, dice: random.Random) -> list[Fault]:
        """Faults of workers in waves, each as long as a takeover may last: a dead member holds up its group until its
        session ends, so what is to be measured must not follow without a pause.
        """
        share = self.seconds / _STORM_SECONDS
        deck = [kind for kind, count in _STORM.items() for _ in range(round(count * share))]
        dice.shuffle(deck)
        wave_seconds = self.session_seconds + TAKEOVER_SECONDS + _SURGE_SECONDS
        waves = int((self.seconds - _FIRST_SECONDS - _QUIET_SECONDS) / wave_seconds) + 1
        found = []
        for place, kind in enumerate(deck):
            at = _FIRST_SECONDS + place % waves * wave_seconds + dice.uniform(0, _SURGE_SECONDS)
            found.append(_roll(dice, at, kind, self._worker_faults()))
        return sorted(found, key=lambda fault: fault.at_seconds)

    def _worker_faults(self) -> dict[str, tuple[int, float, float]]:
        """How many they may befall, and for how long, at least and at most."""
        session = self.session_seconds
        return {
            "kill_worker": (self.workers, 0.0, 4.0 if not self.is_storm else 2.0),
            "stop_worker": (self.workers, session + 1.0 if self.is_storm else 1.0, session * 2.0),
            "leave_worker": (self.workers, 0.0, 3.0),
        }


def _roll(dice: random.Random, at: float, kind: str, kinds: dict[str, tuple[int, float, float]]) -> Fault:
    targets, shortest, longest = kinds[kind]
    return Fault(at, kind, dice.randrange(targets), dice.uniform(shortest, longest))
