"""Errors of the user's making that lower modules raise; the scripts print them as one message."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


class CheckpointError(ValueError):
    """A file or state dict that cannot be imported; the message lists everything wrong with it."""
