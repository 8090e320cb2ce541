"""The model `schedcc` of EleutherAI's lm-evaluation-harness: its tasks over a real pipeline.

`register` tells the harness of it. Release 0.4.13 knows the models of a table in `lm_eval.models`,
and those that have been registered in the process: so an installation of this package registers it
in every process of the command `lm_eval` (`build_backend/`). Later releases also find it by this
package's entry point in the group `lm_eval.models`.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.language.harness.model import SchedccLM

NAME = "schedcc"
"""What `lm_eval --model` calls the model."""

__all__ = ["NAME", "SchedccLM", "register"]


def register() -> None:
    """Enter the model into the registry of the harness; its class is imported when it is used.

    Where the harness is not installed, this does nothing.
    """
    if find_spec("lm_eval") is None:
        return
    import lm_eval.models  # noqa: F401 (a registry that has entries does not get the others any more)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="runtime.language.harness.model:SchedccLM")


def __getattr__(name: str) -> Any:
    if name != "SchedccLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runtime.language.harness.model import SchedccLM

    return SchedccLM
