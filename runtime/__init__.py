"""The runtime: executes compiled plans on torch, over NCCL, shared memory or gloo.

The public names are imported when they are first used, so that `pipeval --help`, or an installation
without torch, does not have to import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import schedcc  # noqa: F401 (it says so where another module hides one of ours)

if TYPE_CHECKING:
    from runtime.checkpoint import CheckpointError
    from runtime.data.fingerprint import DifferentDataError
    from runtime.data.items import DataError
    from runtime.data.sampler import ShardSampler
    from runtime.evaluator import Evaluator
    from runtime.execution.cuda_graphs import CudaGraphError
    from runtime.failure import AgreementError, LostPeerError, RemoteError, StalledError
    from runtime.modules.layers import LayersError, LayerSpec, TiedLayerSpec
    from runtime.modules.partition import PartitionError
    from runtime.modules.weights.agreement import DifferentWeightsError
    from runtime.outputs.logits import label_log_probs
    from runtime.outputs.metrics import MetricError
    from runtime.outputs.nonfinite import NonFiniteError
    from runtime.outputs.results import EvalResult

_MODULES = {
    "AgreementError": "runtime.failure",
    "CheckpointError": "runtime.checkpoint",
    "CudaGraphError": "runtime.execution.cuda_graphs",
    "DataError": "runtime.data.items",
    "DifferentDataError": "runtime.data.fingerprint",
    "DifferentWeightsError": "runtime.modules.weights.agreement",
    "EvalResult": "runtime.outputs.results",
    "Evaluator": "runtime.evaluator",
    "LayersError": "runtime.modules.layers",
    "LayerSpec": "runtime.modules.layers",
    "LostPeerError": "runtime.failure",
    "MetricError": "runtime.outputs.metrics",
    "NonFiniteError": "runtime.outputs.nonfinite",
    "PartitionError": "runtime.modules.partition",
    "RemoteError": "runtime.failure",
    "ShardSampler": "runtime.data.sampler",
    "StalledError": "runtime.failure",
    "TiedLayerSpec": "runtime.modules.layers",
    "label_log_probs": "runtime.outputs.logits",
}

__all__ = [
    "AgreementError",
    "CheckpointError",
    "CudaGraphError",
    "DataError",
    "DifferentDataError",
    "DifferentWeightsError",
    "EvalResult",
    "Evaluator",
    "LayerSpec",
    "LayersError",
    "LostPeerError",
    "MetricError",
    "NonFiniteError",
    "PartitionError",
    "RemoteError",
    "ShardSampler",
    "StalledError",
    "TiedLayerSpec",
    "label_log_probs",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise ModuleNotFoundError(
            f"runtime.{name} needs {error.name}: pip install 'schedcc[runtime]' brings it",
            name=error.name,
        ) from None
    return getattr(module, name)
