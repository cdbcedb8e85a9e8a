"""Packages that only some functions need: imported there, with a clear error where missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from sepc_tf.errors import MissingPackageError


def import_package(module: str, package: str, purpose: str) -> ModuleType:
    """Imports a module of a package that may not be installed.

    Args:
        module: as `import` takes it.
        package: as pip names it.
        purpose: what needs it, for the message.

    Raises:
        MissingPackageError: naming the command that installs it.

    Example:
        >>> import_package("sklearn.datasets", "scikit-learn", "the demo data set").__name__
        'sklearn.datasets'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs {package}: pip install {package} ({error})"
        ) from error
