"""The alert rules, their evaluator, and where alerts go; `subscribe` reads them."""

from runtap_consumers.alerts.subscription import subscribe as subscribe
