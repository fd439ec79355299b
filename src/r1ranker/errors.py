"""Every error this package raises on purpose. Messages say what was wrong, where, and what to do.

R1RankerError
├── DataError      a file, a line or a problem that cannot be used
├── ConfigError    an unknown or impossible setting
└── BackendError   a model that cannot be loaded or asked
    └── NotFiniteError   one whose numbers are NaN or infinite

Modules that have to tell one case from the others add a kind of their own.
"""

from __future__ import annotations


class R1RankerError(Exception):
    """Base of all errors below; the command line prints it without a traceback and exits with 1."""


class DataError(R1RankerError):
    """Input data that cannot be used; names the file, the line or the problem."""


class ConfigError(R1RankerError):
    """A setting that does not exist or cannot work; names the key."""


class BackendError(R1RankerError):
    """A model that cannot be loaded or asked; names the remedy."""


class NotFiniteError(BackendError):
    """Weights, probabilities or losses that are NaN or infinite: there is no order and no update in them."""
