"""Errors that name the argument, what came, what was wanted and the way out.

Every error raised on purpose derives from `SSMNError` and from the built-in class that a reader
would expect, so `except ValueError` keeps working.
"""


class SSMNError(Exception):
    """Base class of every error that this library raises on purpose."""


class ShapeError(SSMNError, ValueError):
    """A tensor has the wrong number of axes or a wrong size."""


class DtypeError(SSMNError, TypeError):
    """A tensor or argument has the wrong type."""


class RangeError(SSMNError, ValueError):
    """A value is outside its range, not finite, or not one of the choices."""


class ConfigError(SSMNError, ValueError):
    """A configuration is inconsistent, or has an unknown or impossible setting."""


class StateError(SSMNError, ValueError):
    """A stream state does not belong to the model, or two states do not fit together."""


class FileError(SSMNError, ValueError):
    """A model, state or data file is damaged, foreign, or of an unknown format."""


class BackendError(SSMNError, RuntimeError):
    """A backend was asked for that cannot run here or cannot take these tensors."""


class TrainingError(SSMNError, RuntimeError):
    """Training cannot start or go on (no data, NaN in data or loss, a checkpoint of another run)."""


class MissingExtraError(SSMNError, ImportError):
    """A feature needs an optional package; the message has the pip line to type."""
