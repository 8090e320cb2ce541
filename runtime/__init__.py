"""The runtime: executes compiled plans on torch, over NCCL or gloo."""

from runtime.agreement import AgreementError, RemoteError
from runtime.eval_result import EvalResult
from runtime.evaluator import Evaluator
from runtime.micro_batches import DataError
from runtime.partition import PartitionError

__all__ = [
    "AgreementError",
    "DataError",
    "EvalResult",
    "Evaluator",
    "PartitionError",
    "RemoteError",
]
