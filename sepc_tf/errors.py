"""Errors of the user's making. The command line prints any `UserError` as one message."""


class UserError(Exception):
    """What a user caused and can mend; the message says what came, what is expected, what to do."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


class CheckpointError(UserError, ValueError):
    """A file or state dict that cannot be imported; the message lists everything wrong with it."""


class DatasetError(UserError, ValueError):
    """A data set that cannot be used; the message names the file and what is wrong in it."""


class ModelError(UserError, ValueError):
    """An exported model that cannot be used; the message names the file and the remedy."""


class UnreadableImageError(UserError, ValueError):
    """An image file that is missing, cut off, or not an image; the message names it."""


class MissingPackageError(UserError, ImportError):
    """A package that this function needs is not installed; the message has the pip command."""


class OutputError(UserError, OSError):
    """A place that results cannot be written to; the message names it and what to give instead."""


class NonFiniteLossError(UserError, RuntimeError):
    """The loss or a gradient became NaN or infinite; the update was not applied."""


class Terminated(UserError):
    """Training was asked to stop by SIGTERM; the state has been saved."""
