"""The error of a configuration, below everything that raises it."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""
