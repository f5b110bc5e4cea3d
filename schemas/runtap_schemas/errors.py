"""Errors of the shared package.

RuntapError
└── SettingsError    a setting has a value that cannot work; stops a process at start
"""

from __future__ import annotations


class RuntapError(Exception):
    """Root of everything that runtap raises on purpose."""


class SettingsError(RuntapError):
    """A setting has a value that cannot work. The message names variable, value and what was expected."""
