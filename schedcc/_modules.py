"""Whether `schemas` and `runtime` are the modules that belong to this package.

Their names are common ones. A module of the user's that comes first on the path hides ours, and the
errors that follow from it name anything but the cause. Importing this asks.
"""

import sys
import warnings
from importlib.util import find_spec
from os.path import dirname, realpath


def hides(name: str) -> str | None:
    """The file of another module that is imported under a name of ours, if there is one."""
    module = sys.modules.get(name)
    spec = find_spec(name) if module is None else module.__spec__
    found = getattr(module, "__file__", None) if spec is None else spec.origin
    if found is None:  # nowhere, or a folder that is no package: the import itself will tell
        return None
    ours = dirname(dirname(realpath(__file__)))
    is_ours = realpath(found).startswith(realpath(f"{ours}/{name}") + "/")
    return None if is_ours else found


def _require_own_modules() -> None:
    """Refuse what cannot work, and warn of what will not.

    Raises:
        ImportError: `schemas` is another module; the compiler needs its own.
    """
    found = hides("schemas")
    if found is not None:
        raise ImportError(
            f"{found} hides the module 'schemas' of schedcc: rename it, or take its folder off "
            "sys.path",
            name="schemas",
            path=found,
        )
    found = hides("runtime")
    if found is not None:
        warnings.warn(
            f"{found} hides the module 'runtime' of schedcc: rename it, or take its folder off "
            "sys.path, before Evaluator or pipeval can be used",
            stacklevel=2,
        )


_require_own_modules()
