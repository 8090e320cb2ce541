"""The runtime: executes compiled plans on torch, over NCCL, shared memory or gloo.

The public names are imported when they are first used, so that `pipeval --help`, or an installation
without torch, does not have to import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import schedcc  # noqa: F401 (it says so where another module hides one of ours)

if TYPE_CHECKING:
    from runtime.agreement import AgreementError
    from runtime.checkpoint import CheckpointError
    from runtime.eval_result import EvalResult
    from runtime.evaluator import Evaluator
    from runtime.failure import (
        DifferentDataError,
        LostPeerError,
        NonFiniteError,
        RemoteError,
        StalledError,
    )
    from runtime.layers import LayersError, LayerSpec, TiedLayerSpec
    from runtime.logits import label_log_probs
    from runtime.metrics import MetricError
    from runtime.micro_batches import DataError
    from runtime.partition import PartitionError
    from runtime.sampler import ShardSampler
    from runtime.weights import DifferentWeightsError

_MODULES = {
    "AgreementError": "runtime.agreement",
    "CheckpointError": "runtime.checkpoint",
    "DataError": "runtime.micro_batches",
    "DifferentDataError": "runtime.failure",
    "DifferentWeightsError": "runtime.weights",
    "EvalResult": "runtime.eval_result",
    "Evaluator": "runtime.evaluator",
    "LayersError": "runtime.layers",
    "LayerSpec": "runtime.layers",
    "LostPeerError": "runtime.failure",
    "MetricError": "runtime.metrics",
    "NonFiniteError": "runtime.failure",
    "PartitionError": "runtime.partition",
    "RemoteError": "runtime.failure",
    "ShardSampler": "runtime.sampler",
    "StalledError": "runtime.failure",
    "TiedLayerSpec": "runtime.layers",
    "label_log_probs": "runtime.logits",
}

__all__ = [
    "AgreementError",
    "CheckpointError",
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
