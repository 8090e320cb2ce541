"""The evaluator: a model's layers over the stages of a pipeline, evaluated micro-batch by batch."""

import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from runtime.checkpoint import Mismatch, load_layers, save_states, state_of_module
from runtime.data.micro_batches import DataError
from runtime.data.samples import WeightFunction
from runtime.distributed.grid import default_transport, require_grid
from runtime.evaluation.lifetime import Closable, Lifetime
from runtime.evaluation.runner import Runner
from runtime.evaluation.setup import Setup
from runtime.execution.cuda_graphs import require_gpu
from runtime.execution.listeners import Listener
from runtime.failure.guard import TIMEOUT, Guard
from runtime.modules.building import build_with_ties, layers_of
from runtime.modules.division import Division
from runtime.modules.layers import LayerLike, StageModule, build_stage, require_layers
from runtime.modules.partition import Partition, divide
from runtime.modules.profile import agreed_profile
from runtime.modules.weights.agreement import RankWeights, digests_of
from runtime.modules.weights.ties import Ties
from runtime.outputs.metrics import Metric, StatefulMetrics, split_metrics
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
from schedcc.table.ranges import in_words
from schemas import CheckpointManifest, LogitsTo, PipelinePlan, ReduceOutput
from schemas.plans import in_circle

_LOG = logging.getLogger(__name__)


class Evaluator(Closable):
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
            ValueError: `overlap` is no choice, or `channels` are named beside a transport.
            DeviceError: `cuda_graphs` on a CPU.
            ScheduleError: the schedule or the plan is for other numbers of stages and ranks.
            UnsoundPlanError: the plan is not sound; the message lists its findings.
            TransportError: NCCL was not initialised as it has to be, or channels share one queue
                that lead around in a circle.
        """
        if transport is not None and channels is not None:
            raise ValueError(f"channels is {channels!r}, but the transport has channels already")
        entries = require_layers(layers)
        named_layers = layers if isinstance(layers, nn.Sequential) else entries
        ranks = stages if schedule == "inference" and plan is None else None
        self._transport = transport or default_transport(ranks, replicas, mesh, channels)
        require_grid(self._transport, ranks, replicas)
        if cuda_graphs:
            require_gpu(self._transport.device)
        plans = plan_source(schedule, plan, stages, self._transport.ranks)
        if in_circle(plans.placement):
            self._transport.separate_channels()
        self.stages, self.rank = len(plans.placement), self._transport.rank
        self.replicas, self.replica = self._transport.replicas, self._transport.replica
        guarded = guard or Guard(self._transport, timeout=timeout)
        own = None if guard else guarded
        self._lifetime = Lifetime(self, self._transport, own, owns=transport is None)
        named = partial(guarded.named, self._lifetime.name)
        profile = partial(
            agreed_profile,
            named_layers,
            self._transport,
            named(),
            sample_inputs,
            keyword_inputs=keyword_inputs,
        )
        self.boundaries = divide(entries, plans.placement, partition, profile)
        self._division = division = Division.of(self.boundaries, plans.placement)
        self._guard = named(division.titles)
        self.stage_ids = division.stages_of(self.rank)
        """The stages on this rank."""
        ties = Ties(entries, division, self.rank)
        built = digests_of(entries, ties.names) if check_weights else None
        device, tied = self._transport.device, dict[Hashable, nn.Module]()

        def build(stage: int) -> StageModule:
            first, stop = self.boundaries[stage : stage + 2]
            module = build_stage(
                named_layers, first, stop, keyword_inputs=keyword_inputs, tied=tied
            )
            return module.to(device)

        self.modules = build_with_ties(entries, ties, division, self._transport, self._guard, build)
        """The layers of each stage on this rank; nothing keeps the others alive."""

        self._layers = layers_of(self.modules, division)
        self._weights = RankWeights(self._layers, division, self._transport, ties, built)
        self._micro_batches = micro_batches
        metric_fns, stateful = split_metrics(metrics or {})
        recorder = None if record is None else Recorder(record, self._transport)
        if recorder is not None:
            self._lifetime.at_end(recorder.close)
        setup = Setup(
            modules=self.modules,
            plans=plans,
            division=division,
            weights=self._weights,
            loss_fn=loss_fn,
            metric_fns=metric_fns,
            metrics=StatefulMetrics(stateful, self._transport),
            weight_fn=weight_fn,
            keyword_inputs=keyword_inputs,
            overlap=overlap,
            dynamic_shapes=dynamic_shapes,
            cuda_graphs=cuda_graphs,
            check_data=check_data,
            check_finite=check_finite,
            listeners=[*([recorder] if recorder else []), *listeners],
            recorder=recorder,
        )
        self._runner = Runner(self._transport, self._guard, setup)
        self._lifetime.at_end(self._runner.close)
        _LOG.info("rank %d of the job: %r", self._transport.rank, self)

    def __repr__(self) -> str:
        """Who this process is: its replica, its rank in that pipeline, and what it holds."""
        held = "; ".join(
            f"stage {s} of {self.stages}: {in_words('layer', [self._division.layers_of_stage(s)])}"
            for s in self.stage_ids
        )
        place = f"replica {self.replica} of {self.replicas}, rank {self.rank}"
        return f"<{type(self).__name__} {place}, {self._transport.device}; {held}>"

    @property
    def stage_id(self) -> int:
        """The first stage on this rank; mostly the only one."""
        return self.stage_ids[0]

    @property
    def module(self) -> StageModule:
        """The layers of this rank's only stage; of several, see `modules`.

        Raises:
            ValueError: the rank holds several stages.
        """
        if len(self.modules) > 1:
            held = ", ".join(map(str, self.stage_ids))
            raise ValueError(f"rank {self.rank} holds the stages {held}: see modules[stage]")
        return self.modules[self.stage_id]

    @property
    def is_first(self) -> bool:
        """Whether this rank reads inputs."""
        return 0 in self.stage_ids

    @property
    def is_last(self) -> bool:
        """Whether this rank reads labels and has the logits."""
        return self.stages - 1 in self.stage_ids

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
        data = None if loader is None else _iterated(loader)
        return self._runner.evaluate(data, EvalOptions(**options), None)

    def save_state_dict(
        self, directory: str | Path, *, parallel_write: bool = True
    ) -> CheckpointManifest:
        """Save all layers, a file each; see `runtime.checkpoint`. Every rank has to call this.

        Args:
            directory: On a file system that all ranks share. A checkpoint that it holds is replaced
                at the end, at once.
            parallel_write: Whether the replicas of a stage share the writing of its layers, or
                replica 0 writes all of them.

        Raises:
            CheckpointError: a layer cannot be saved or written, on any rank; the same everywhere.
        """
        self._lifetime.require_open()
        with self._guard.run("save_state_dict") as run:
            run.phase("the saving of a checkpoint", waits_for="", patient=True)
            self._weights.hold_ties()
            states = {index: state_of_module(layer) for index, layer in self._layers.items()}
            return save_states(
                states, Path(directory), self._transport, parallel_write=parallel_write
            )

    def load_state_dir(self, directory: str | Path, *, strict: bool = True) -> Mismatch:
        """Load all layers from a directory, saved with any number of stages and replicas.

        Args:
            directory: Made by `save_state_dict`, or by DeepSpeed's pipeline engine.
            strict: Whether to refuse tensors that only the model or only the checkpoint has.

        Returns:
            Those tensors, of all stages.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit; no module has changed.
        """
        self._lifetime.require_open()
        with self._guard.run("load_state_dir") as run:
            run.phase("the loading of a checkpoint", waits_for="", patient=True)
            return load_layers(
                self._layers, self.boundaries[-1], Path(directory), self._transport, strict=strict
            )


def _iterated(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate, beginning when the first item is asked for: beginning may fail."""
    yield from loader
