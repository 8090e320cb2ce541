"""The evaluator: a model's layers over the stages of a pipeline, evaluated micro-batch by batch."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from runtime.data.items import DataError
from runtime.data.micro_batches import MOST, Fetching, FetchInThread
from runtime.data.samples import WeightFunction
from runtime.distributed.grid import connected
from runtime.evaluation.rank_layers import RankLayers
from runtime.evaluation.runner import Runner
from runtime.evaluation.setup import Setup
from runtime.execution.cuda_graphs import require_gpu
from runtime.execution.listeners import Listener
from runtime.failure.guard import TIMEOUT, Guard
from runtime.modules.layers import LayerLike
from runtime.modules.partition import Partition
from runtime.outputs.metrics import Metric, Metrics
from runtime.outputs.options import (
    EvalKeywords,
    EvalOptions,
    LogitsCallback,
    LogitsFunction,
)
from runtime.outputs.results import EvalResult
from runtime.outputs.values import LossFunction
from runtime.planning.autotuning import Overlap
from runtime.planning.sources import plan_source
from runtime.recording.recorder import Recorder
from runtime.transport import Channels, Transport
from schedcc.errors import require_count
from schedcc.schedules import Schedule
from schemas import LogitsTo, PipelinePlan, ReduceOutput

_LOG = logging.getLogger(__name__)


class Evaluator(RankLayers):
    """Evaluates a model whose layers are spread over the stages of a pipeline.

    Every stage is a process (or a thread, with the in-memory transport) that makes an evaluator of
    the same layers and calls the same methods. Parameters that are named as in DeepSpeed's
    `PipelineEngine.eval_batch` mean what they mean there. What the system gave for it is given back
    when it is closed (`close`, or the end of a `with` block), or nobody holds it any more.
    """

    def __init__(
        self,
        layers: nn.Sequential | Sequence[LayerLike],
        *,
        loss_fn: LossFunction | None = None,
        metrics: Mapping[str, Metric] | None = None,
        stages: int | None = None,
        schedule: str | Schedule = "inference",
        plan: PipelinePlan | None = None,
        replicas: int | None = None,
        mesh: DeviceMesh | None = None,
        partition: Partition = "parameters",
        sample_inputs: Any = None,
        keyword_inputs: bool = False,
        micro_batches: int | None = None,
        prefetch: int = MOST,
        fetch_in_thread: FetchInThread = "auto",
        overlap: Overlap = True,
        channels: Channels | None = None,
        weight_fn: WeightFunction | None = None,
        transport: Transport | None = None,
        guard: Guard | None = None,
        timeout: float = TIMEOUT,
        dynamic_shapes: bool = False,
        cuda_graphs: bool = False,
        check_data: bool = True,
        check_finite: bool = False,
        check_weights: bool = True,
        listeners: Sequence[Listener] = (),
        record: str | Path | None = None,
    ) -> None:
        """Build this stage's layers, on its device.

        Args:
            layers: All layers of the model, in order: modules, plain functions, or `LayerSpec`s, of
                which only those of this stage are built. Each takes the output of the one before it
                as its only argument (a tuple is one); the first takes a micro-batch's inputs.
                Layers that are tied share their weights over the stages, see
                `runtime.modules.weights.ties`.
            loss_fn: `(output, label) -> loss`, the mean over the micro-batch as a scalar tensor, or
                several in nested tuples, lists and dicts.
            metrics: By name. Functions `(output, label) -> value` are reduced like the loss.
                Objects with `update`, `compute` and `reset` (as of torchmetrics) keep a state.
            stages: S; default: two on each rank if the schedule allows it, else one, for as many
                ranks as there are processes, divided by `replicas`. Where a launcher started
                several processes and `init_process_group` was not called, 1 means that each of
                them evaluates the whole model by itself.
            schedule: Which stage forwards which micro-batch when, and on which process each stage
                is: the name of one that ships, or a value of one's own (`schedcc.Schedule`).
            plan: A plan to be run as it is, once it has passed all checks, in place of plans that
                are compiled: made, changed or imported anywhere. It says S and the placement.
            replicas: Data-parallel copies of the pipeline, each with its own share of the data;
                default: one. Their weights have to be the same.
            mesh: The grid of processes, with a dimension `"pp"`, and `"dp"` for replicas; default:
                made from `stages` and `replicas`.
            partition: How layers are divided, see `runtime.modules.partition.Partition`.
            sample_inputs: For the partition `"profile"`: typical inputs, on the first stage.
            keyword_inputs: Whether inputs are mappings that the first layer takes as keyword
                arguments. A micro-batch may then also be one mapping, with its `"labels"`.
            micro_batches: M, unless a call says otherwise.
            prefetch: So many micro-batches are fetched before they are needed, at most (and 4 MiB
                of them and one more). 0: each one is fetched when it is needed.
            fetch_in_thread: Whether a thread asks a loader while the stage computes. It has to be
                one that any thread may use; its random numbers are drawn beside those of the
                model. `"auto"`: on a CPU, a `DataLoader` with workers.
            overlap: Whether transfers cross the forwards, see `schedcc.passes`; the results are
                the same. `"auto"`: whichever was faster in the first runs, which take turns.
            channels: Without a `transport`: what activations travel through, see `TorchTransport`.
            weight_fn: `label -> weight` of a micro-batch in the average; one of weight 0 does not
                count. Default: its samples, where their number is certain (`runtime.data.samples`).
            transport: Connection to the other stages; default: torch.distributed's default group
                if it is initialised, else none, for a single stage.
            guard: Of `transport`, where other work on it is guarded as well; default: a new one.
            timeout: Seconds after which an evaluation in which no stage gets on is ended; without
                a `guard`.
            dynamic_shapes: Whether every activation brings its shape along. Needed only where
                shapes depend on something that torch does not see (a counter of the layer,
                say); elsewhere that is noticed.
            cuda_graphs: Whether forwards are captured into CUDA graphs and replayed, for layers
                that the host cannot launch as fast as a GPU runs them; see
                `runtime.execution.cuda_graphs` for what such layers may not do.
            check_data: Whether the stages that read micro-batches compare fingerprints of them;
                what is `None` in a stage's pairs is not compared.
            check_finite: Whether a loss that is NaN or infinite is an error, which names the stage
                where it began.
            check_weights: Whether replicas compare samples of their weights when an evaluation
                starts, and all processes, at the first, those of the modules in `layers` as they
                have built them, unless others have been loaded.
            listeners: Told about every instruction.
            record: Directory where each stage writes what it executes (`runtime.recording`).

        Raises:
            LayersError: `layers` is a whole model, an iterator, or holds something else.
            RecordingError: `record` already holds a recording, or cannot be written.
            PartitionError: the layers cannot be divided so.
            AgreementError: the processes make another grid, or none though a launcher started
                several, or tied layers do not fit.
            RemoteError: another stage could not build its layers, or profile them.
            MetricError: a metric cannot be combined over the replicas.
            ValueError: `overlap`, `prefetch` or `fetch_in_thread` is no choice, or `channels` are
                named beside a transport.
            DeviceError: `cuda_graphs` on a CPU.
            ScheduleError: the schedule or the plan is for other numbers of stages and ranks.
            UnsoundPlanError: the plan is not sound; the message lists its findings.
            TransportError: NCCL was not initialised as it has to be, or channels share one queue
                that lead around in a circle.
        """
        ranks = stages if schedule == "inference" and plan is None else None
        connection = connected(transport, ranks, replicas, mesh, channels)
        if cuda_graphs:
            require_gpu(connection.device)
        plans = plan_source(schedule, plan, stages, connection.ranks)
        super().__init__(connection, plans.placement, guard, timeout, owns=transport is None)
        self._build(layers, partition, sample_inputs, keyword_inputs, check_weights=check_weights)
        self._micro_batches = micro_batches
        setup = Setup(
            modules=self.modules,
            plans=plans,
            division=self._division,
            weights=self._weights,
            loss_fn=loss_fn,
            metrics=Metrics(metrics or {}, connection),
            weight_fn=weight_fn,
            keyword_inputs=keyword_inputs,
            fetching=Fetching(prefetch, fetch_in_thread),
            overlap=overlap,
            dynamic_shapes=dynamic_shapes,
            cuda_graphs=cuda_graphs,
            check_data=check_data,
            check_finite=check_finite,
            listeners=[*listeners],
            recorder=None if record is None else Recorder(record, connection),
        )
        self._runner = Runner(connection, self._guard, setup)
        self._lifetime.at_end(self._runner.close)
        _LOG.info("rank %d of the job: %r", connection.global_rank, self)

    def eval_batch(
        self,
        data_iter: Iterable[Any] | None,
        return_logits: bool = False,
        compute_loss: bool = True,
        reduce_output: ReduceOutput | None = "avg",
        bcast_loss: bool = True,
        num_micro_batches: int | None = None,
        *,
        logits_to: LogitsTo = "last",
        logits_device: torch.device | str | None = None,
        on_logits: LogitsCallback | None = None,
        logits_fn: LogitsFunction | None = None,
    ) -> EvalResult:
        """Evaluate M micro-batches.

        Args:
            data_iter: Gives pairs `(inputs, labels)`; on the first and the last stage it is
                advanced by exactly M. Needed on the first stage, which takes the inputs, and on the
                last, which takes the labels; the others may pass `None`.
            return_logits: Whether the logits of all micro-batches are returned.
            compute_loss: Whether losses and metrics are computed.
            reduce_output: `"avg"`: average the losses, weighted by `weight_fn`, over the data of
                all replicas; `"sum"`: add them up; `"mean_of_means"`: average them without weights,
                as DeepSpeed does; `None`: do not.
            bcast_loss: Whether every stage gets losses and metrics, or only the last.
            num_micro_batches: M; default: the evaluator's.
            logits_to: The stages that get the logits: `"last"`, `"first"` or `"all"`.
            logits_device: Where the logits are moved as they come, `"cpu"` for example.
            on_logits: Called with the number of each micro-batch and its logits, on the stages that
                get them: on the last stage as they come, elsewhere at the end of the run (in
                `evaluate`, every 256 micro-batches at the latest). With `logits_to` other than
                `"last"`, all stages have to pass one.
            logits_fn: `(output, label) -> what is handed out in place of the output`;
                `runtime.label_log_probs` for example.

        Returns:
            The result, as far as this stage is to know it.

        Raises:
            ScheduleError: M is no integer of at least 1, or an option does not exist.
            DataError: this stage's data is not made of pairs, or missing.
            AgreementError: the stages do not agree, or a stage's data ended early.
            DifferentWeightsError: processes have other weights than others, see `check_weights`.
            DifferentDataError: first and last stage read different micro-batches.
            NonFiniteError: a loss is NaN or infinite, with `check_finite`.
            RemoteError: another stage failed, ended without a word, or did not get on in time.
            ValueError: a loss or a metric is not made of scalars, or the evaluator was closed.
        """
        self._lifetime.require_open()
        micro_batches = self._micro_batches if num_micro_batches is None else num_micro_batches
        if micro_batches is None:
            raise DataError("num_micro_batches is None, and the evaluator has no micro_batches")
        require_count("num_micro_batches", micro_batches)
        options = EvalOptions(
            compute_loss=compute_loss,
            reduce_output=reduce_output,
            bcast_loss=bcast_loss,
            return_logits=return_logits,
            logits_to=logits_to,
            logits_device=logits_device,
            on_logits=on_logits,
            logits_fn=logits_fn,
        )
        return self._runner.evaluate(data_iter, options, micro_batches)

    def evaluate(self, loader: Iterable[Any] | None, **options: Unpack[EvalKeywords]) -> EvalResult:
        """Evaluate a whole data set, whose length need not be known.

        Args:
            loader: Pairs `(inputs, labels)`, on the first and the last stage. With replicas: those
                of this replica; others may have more or fewer of them, or none.
            **options: The keyword arguments of `eval_batch`, but `num_micro_batches`.

        Returns:
            The result over all micro-batches.

        Raises:
            DataError: there is no data in any replica, or it is not made of pairs.
            TypeError: an option does not exist.
            AgreementError, DifferentDataError, NonFiniteError, RemoteError, ValueError: as of
                `eval_batch`.
        """
        self._lifetime.require_open()
        return self._runner.evaluate(loader, EvalOptions(**options), None)
