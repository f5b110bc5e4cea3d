"""The rules of a process, and whether they are still those of the file."""

from __future__ import annotations

from pathlib import Path

import structlog

from runtap_consumers.alerts.rule_file import FILE_NAME, RuleFile, find_rules
from runtap_consumers.alerts.rules import make_rules
from runtap_consumers.alerts.state import Rule
from runtap_consumers.errors import AlertFileError
from runtap_consumers.settings import ConsumerSettings

_logger = structlog.get_logger(__name__)


class RuleSource:
    """Reads the file again when it changes; one that became wrong changes nothing, and the log says so once."""

    def __init__(self, settings: ConsumerSettings) -> None:
        """Raises:
        AlertFileError: the file cannot be read or is wrong: at the start that stops a process.
        """
        self._settings = settings
        self._stamp = self._read_stamp()
        self.file: RuleFile = find_rules(settings.alerts, settings.cost_attributes)
        self._rules = make_rules(self.file.rules)

    def rules(self) -> list[Rule]:
        """The rules as they are now."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self.file = find_rules(self._settings.alerts, self._settings.cost_attributes)
            except AlertFileError as error:
                _logger.error("alert_rules_refused", reason=str(error), consequence="the rules remain as they were")
            else:
                self._rules = make_rules(self.file.rules)
                _logger.info("alert_rules_reloaded", file=self.file.name, rules=len(self._rules))
        return self._rules

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = Path(self._settings.alerts or FILE_NAME).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
