"""One family of errors: a user's mistake is one sentence with the offending value and its remedy."""


class ActbenchError(Exception):
    """Base of every error that the command line turns into one sentence on stderr."""

    exit_code = 1


class UsageError(ActbenchError):
    """The request cannot be carried out as it stands; nothing was started or written."""

    exit_code = 2


class SchemeError(UsageError):
    """A scheme's text or one of its values is not valid."""


class DataError(UsageError):
    """A data set is unknown, absent, damaged or inconsistent."""


class DeviceError(UsageError):
    """The device asked for, or what it needs, is not on this machine."""


class OutputError(UsageError):
    """The record file cannot be written or read."""


class NonFiniteError(ActbenchError):
    """A tensor that is to be compressed holds NaN, an infinity or a range beyond float32."""


class KernelError(ActbenchError):
    """A kernel's result is not the reference's."""
