"""Events that cannot be applied: found by halving, one by one, so that the others of their batch go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from runtap_consumers.errors import FoldFailedError, RowsRefusedError
from runtap_consumers.kafka.records import KafkaRecord
from runtap_consumers.worker.decoding import NOT_APPLIED, decode_records
from runtap_consumers.worker.partition import Partition, Tools

REASONS = (RowsRefusedError, FoldFailedError)


class _UndoneError(Exception):
    """Ends the transaction of a trial."""


def find_refused(number: int, projections: Sequence[str], tools: Tools, record: KafkaRecord) -> dict[int, str]:
    """The numbers of a record's events that cannot be applied, each with its cause. For the thread that writes.

    Args:
        number: of the partition, which is loaded anew for every trial.
        projections: that fold it.
        tools: of the worker.
        record: one whose batch was refused alone.

    Raises:
        RowsRefusedError, FoldFailedError: not for a reason of its events: it is refused without any of them, too.
        StoreError: the store did not answer.
    """

    def attempt(others: Iterable[int]) -> RowsRefusedError | FoldFailedError | None:
        try:
            partition = Partition(number, projections, tools)
            partition.refused = {record.offset: dict.fromkeys(others, "another is tried")}
            partition.load(0)
            commit = partition.fold([record])
            with suppress(_UndoneError), tools.writer.transaction():
                tools.writer.write(commit)
                raise _UndoneError
        except REASONS as error:
            return error
        return None

    def search(numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
        error = attempt(set(every) - set(numbers))
        if error is None:
            return
        if len(numbers) == 1:
            yield numbers[0], f"{NOT_APPLIED}{error}"[:500]
            return
        middle = len(numbers) // 2
        yield from search(numbers[:middle])
        yield from search(numbers[middle:])

    (decoded,) = decode_records([record])
    every = range(decoded.frame.first, decoded.frame.first + len(decoded.events))
    error = attempt(every)
    if error is not None:
        raise error
    found = dict(search(every))
    error = attempt(found)
    # Where each can be applied and all together cannot, none is.
    return found if error is None else dict.fromkeys(every, f"{NOT_APPLIED}{error}"[:500])
