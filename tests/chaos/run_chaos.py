"""The whole pipeline under faults, and its figures compared with what was captured.

    python tests/chaos/run_chaos.py [--long | --storm] [--isolated] [--session N]
                                    [--seed N] [--seconds N] [--events N] [--only KIND …] [--every N]

Real Kafka, real PostgreSQL, four services with the real collector, workers. Every few seconds one of them is killed,
stopped, cut off or sent away; the seed says when and which, and replays the schedule. `--storm` befalls workers alone,
and often; `--isolated` kills them one by one, to see how soon each is taken over. In the end everything is let go on.
Then

    books of services and model server = the retained log    books.py, each event once
    every figure of the store = those, folded again          oracle.py
    the ledger of the report = the retained log              here
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from chaos.books import settle  # noqa: E402
from chaos.faults import Faults, say  # noqa: E402
from chaos.plan import MORTAL, TAKEOVER_SECONDS, Plan  # noqa: E402
from chaos.processes import TOPIC, Processes, output_of  # noqa: E402
from chaos.retained import read_log  # noqa: E402

_REST_SECONDS = 180.0
_LAG_SECONDS, _CAUGHT_UP_SECONDS = 2.0, 10.0


def run_faults(processes: Processes, faults: Faults) -> None:
    """Inflicts the schedule."""
    wait_for(processes, "the first commit", processes.has_begun, 60)
    began, threads = time.monotonic(), []
    for fault in processes.plan.faults():
        while time.monotonic() - began < fault.at_seconds:
            processes.supervise()
            time.sleep(0.05)
        say(fault.kind, at=round(time.monotonic() - began, 1), target=fault.target, seconds=round(fault.seconds, 1))
        thread = threading.Thread(target=faults.inflict, args=(fault,))
        thread.start()
        threads.append(thread)
    for thread in threads:
        while thread.is_alive():
            processes.supervise()
            thread.join(0.1)


def wait_for(processes: Processes, what: str, is_done: Any, seconds: float) -> float:
    """Waits while processes are looked after.

    Returns:
        How long it took; more than `seconds` where it never came.
    """
    began, reason = time.monotonic(), ""
    while time.monotonic() - began < seconds:
        processes.supervise()
        try:
            if is_done():
                return time.monotonic() - began
        except Exception as error:  # noqa: BLE001
            # What is asked may be away.
            reason = repr(error)[:300]
        time.sleep(0.3)
    say("not_reached", what=what, seconds=seconds, reason=reason)
    return seconds + 1


def compare_ledger(ledger: dict[str, Any], logged: dict[str, list[int]]) -> list[str]:
    """The ledger against the log: of each emitter what is there and what is missing, and that the row adds up. Nothing
    is in flight or dropped but of a service that was killed, whose emitters may not even have said whose they are.
    """
    found, mortal = [], f"service-{MORTAL}"
    for row in ledger["emitters"]:
        there, missing = logged.get(row["emitter"], [0, 0])
        dropped = sum(row["dropped"].values())
        rest = row["in_flight"] + dropped + row["lost"] + row["quarantined"]
        is_whole = (row["applied"], row["lost"]) == (there, missing) and row["captured"] == row["applied"] + rest
        is_at_rest = row["state"] == "closed" and rest == 0
        if not is_whole or row["quarantined"] or not (is_at_rest or row["service"] in (None, mortal)):
            found.append(f"ledger: {row}, the log has {there} and lacks {missing}")
    unknown = set(logged) - {row["emitter"] for row in ledger["emitters"]}
    return [*found, *(f"ledger: nothing of {emitter}" for emitter in unknown)]


def compare(processes: Processes) -> tuple[list[str], dict[str, Any], dict[int, list[float]]]:
    """Every comparison of the end.

    Returns:
        Each difference, what there was, and when it was appended, by partition.
    """
    folder, direct_url = processes.folder, processes.database.direct_url
    log, settled = folder / "log.jsonl", folder / "settled.jsonl"
    appended = asyncio.run(read_log(processes.kafka.bootstrap_servers, TOPIC, log))
    differences, found = settle(processes.books, processes.answers, log, settled)
    logged = found.pop("emitters")
    url = direct_url.replace("postgresql://", "postgresql+psycopg://")
    oracle = (str(HERE / "oracle.py"), url, str(settled))
    code, said, complaint = output_of(*oracle, environment=processes.environment, seconds=900)
    *lines, last = said.splitlines() or [""]
    differences += lines if last else [f"oracle ended with {code}: {complaint[-2_000:]}"]
    environment = {**processes.environment, "RUNTAP_DATABASE_URL": direct_url}
    ask = ("-m", "runtap_consumers", "ledger", "--json")
    code, said, complaint = output_of(*ask, environment=environment, seconds=120)
    if code:
        return [*differences, f"ledger ended with {code}: {complaint[-2_000:]}"], found, appended
    ledger = json.loads(said)
    differences += compare_ledger(ledger, logged)
    left = [path.name for path in folder.glob("spool*/**/*.spool*")]
    differences += [f"left in a spool: {name}" for name in left]
    headline = {name: ledger[name] for name in ("captured", "applied", "in_flight", "lost", "dropped", "repeats")}
    found |= {"events_in_log": sum(there for there, _ in logged.values()), "ledger": headline}
    return differences, {**found, **(json.loads(last) if last else {})}, appended


def judge(processes: Processes, faults: Faults, behind_seconds: float) -> int:
    """Brings everything to rest, compares and says what was found.

    Returns:
        The exit code: 1 where a figure is wrong, 2 where only something took too long.
    """
    limit = processes.plan.seconds + _REST_SECONDS
    closed = wait_for(processes, "emitters", processes.have_emitted, limit)
    drained = wait_for(processes, "lag", lambda: processes.lag() == 0, _REST_SECONDS)
    differences, found, appended = compare(processes)
    for line in differences[:40]:
        say("difference", line=line)
    takeovers = processes.takeovers.figures(processes.plan.session_seconds + TAKEOVER_SECONDS, appended)
    codes = [emitter.process.returncode for emitter in processes.emitters]
    logs = {log.name: log.read_text("utf-8", "replace") for log in processes.folder.glob("*.log")}
    # At the beginning of a line it is a process's last word; inside one somebody has caught it, and says so.
    crashes = [name for name, text in logs.items() if "\nTraceback (most recent" in f"\n{text}"]
    say(
        "result",
        seed=processes.plan.seed,
        **{**found, "differences": len(differences)},
        faults=faults.counts.total(),
        faults_by_kind=faults.counts,
        **faults.found,
        takeovers=takeovers,
        spools_adopted=sum(text.count("event='spool_adopted'") for text in logs.values()),
        commits_fenced=sum(text.count('"worker_fenced"') for text in logs.values()),
        partitions=faults.partitions,
        seconds_until_lag_was_below_two=round(behind_seconds, 1),
        seconds_until_emitters_closed=round(closed, 1),
        seconds_until_rest=round(drained, 1),
        emitter_exit_codes=codes,
        workers_that_ended_by_themselves=processes.own_ends,
        crashed=crashes,
        tracebacks_logged=sum(text.count("Traceback (most recent") for text in logs.values()) - len(crashes),
    )
    if differences or found.get("undelivered", 1) or any(codes) or crashes or faults.failures:
        return 1
    is_late = behind_seconds > _CAUGHT_UP_SECONDS or takeovers.get("above_bar", 0) > 0
    return 2 if (processes.plan.is_storm or processes.plan.is_isolated) and is_late else 0


def make_plan() -> tuple[Plan, bool]:
    """What the command line asks for, and whether the folder is to be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--long", action="store_true", help="three nodes, an hour, 2,000,000 events")
    kind.add_argument("--storm", action="store_true", help="ten minutes of kills, stops and leaves of eight workers")
    parser.add_argument("--isolated", action="store_true", help="only kills of workers, one at a time")
    parser.add_argument("--session", type=float, help="seconds that a worker may be silent")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--events", type=int)
    parser.add_argument("--only", nargs="+", default=(), help="kinds of faults, such as kill_worker")
    parser.add_argument("--every", type=float, help="seconds from one fault to the next, about")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and books")
    chosen = parser.parse_args()
    plan = Plan(chosen.seed, chosen.seconds or 270, 1, chosen.events or 155_000, only=tuple(chosen.only))
    if chosen.long:
        plan.seconds, plan.events, plan.nodes = chosen.seconds or 3_600, chosen.events or 2_000_000, 3
        plan.every_seconds = (5.0, 15.0)
    elif chosen.storm:
        plan.seconds = chosen.seconds or 600
        plan.events = chosen.events or int(plan.seconds * 250)
        # So many that some are always left to take over.
        plan.is_storm, plan.workers, plan.partitions, plan.session_seconds = True, 8, 12, 3.0
    plan.is_isolated, plan.session_seconds = chosen.isolated, chosen.session or plan.session_seconds
    if chosen.every:
        plan.every_seconds = (chosen.every * 0.7, chosen.every * 1.3)
    return plan, chosen.keep


def main() -> int:
    """One run."""
    plan, must_keep = make_plan()
    folder = Path(tempfile.mkdtemp(prefix="rt-chaos-"))
    say("begun", seed=plan.seed, seconds=plan.seconds, nodes=plan.nodes, events=plan.events, folder=str(folder))
    processes = Processes(plan, folder)
    code = 1
    try:
        processes.start()
        faults = Faults(processes)
        run_faults(processes, faults)
        events = _LAG_SECONDS * plan.events / plan.seconds
        behind = wait_for(processes, "lag below 2 s", lambda: processes.lag() < events, 60)
        code = judge(processes, faults, behind)
    finally:
        processes.close()
        if code == 0 and not must_keep:
            shutil.rmtree(folder, ignore_errors=True)
    say({0: "passed", 1: "failed", 2: "exact_but_late"}[code], folder=str(folder))
    return code


if __name__ == "__main__":
    sys.exit(main())
