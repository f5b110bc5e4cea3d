"""Errors of the workers' side.

RuntapError
└── ConsumerError
    ├── StoreError          the store cannot be used: unreachable, of another topic
    │   ├── StoreAwayError       it cannot be reached now, which waiting may cure
    │   ├── FencedError          another worker owns the partition now
    │   ├── RowsRefusedError     it holds no such values, however often they come
    │   └── StoreVersionError    the store is of another version of runtap
    ├── FoldFailedError          a projection cannot fold a batch
    ├── KafkaUnavailableError    Kafka or one of its topics cannot be used
    │   ├── KafkaAwayError           it cannot be reached now, or has no such topic yet
    │   └── RecordTooLargeError      one record is larger than its topic takes
    ├── HealthPortError          health cannot be served at the port that was asked for
    ├── InputError               what a person asked for cannot be understood
    ├── PriceFileError           a file of prices cannot be read, or is wrong
    ├── AlertFileError           the file of alert rules cannot be read, or is wrong
    ├── ForwardRefusedError      LangSmith does not want the key
    ├── RebuildError             figures cannot be rebuilt from the log now
    └── WorkerStoppedError       no running projection makes progress any more
"""

from __future__ import annotations

from runtap_schemas import RuntapError


class ConsumerError(RuntapError):
    """Root of what workers, report and tools raise on purpose."""


class StoreError(ConsumerError):
    """The store cannot be used. The message names its address, without password, and what to do."""


class QueryTimeoutError(StoreError):
    """Reading took longer than it may."""


class StoreAwayError(StoreError):
    """The store cannot be reached now: nobody listens, no such host, starting up. Waiting may cure it."""


class FencedError(StoreError):
    """The positions are not where this worker left them: another owns the partition now. Forget all memory of it.

    Attributes:
        projection: whose position it was.
    """

    def __init__(self, message: str, projection: str) -> None:
        super().__init__(message)
        self.projection = projection


class RowsRefusedError(StoreError):
    """The store does not take a value: out of its range, too long for an index, not its encoding. Trying again does not
    help; another batch may.
    """


class FoldFailedError(ConsumerError):
    """A projection raised on a batch: a bug, or an event that nobody thought of.

    Attributes:
        projection: which.
    """

    def __init__(self, projection: str, cause: Exception) -> None:
        super().__init__(f"{projection} cannot fold it: {cause!r}")
        self.projection = projection


class StoreVersionError(StoreError):
    """The store's tables are those of another version. The message names both and what to do."""


class KafkaUnavailableError(ConsumerError):
    """Kafka, or a topic on it, cannot be used. The message names both and what to do."""


class KafkaAwayError(KafkaUnavailableError):
    """Kafka cannot be reached now, or has no such topic yet. Waiting may cure it."""


class RecordTooLargeError(KafkaUnavailableError):
    """One record is larger than its topic takes; sending it again does not help."""


class WorkerStoppedError(ConsumerError):
    """No running projection of this worker can make progress; the process exits non-zero."""


class HealthPortError(ConsumerError):
    """Health cannot be served: the port is taken, or not for this user. No worker starts unwatched."""


class InputError(ConsumerError):
    """What a person asked for cannot be understood. The message repeats it and says what is expected."""


class PriceFileError(ConsumerError):
    """A file of prices cannot be read, or something in it cannot work. The message names file, key and value."""


class AlertFileError(ConsumerError):
    """The file of alert rules cannot be read, or says what cannot be judged: a line a mistake, with rule and key."""


class ForwardRefusedError(ConsumerError):
    """LangSmith does not want the key, and never took anything with it."""


class RebuildError(ConsumerError):
    """A projection cannot be rebuilt from the log now; its figures are as they were. The message says why."""
