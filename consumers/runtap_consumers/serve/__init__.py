"""The figures over HTTP (`runtap serve`): read-only, on loopback unless there is a token."""
