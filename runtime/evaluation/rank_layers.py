"""The layers of one rank of a pipeline."""

from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from runtime.checkpoint import Mismatch, load_layers, save_states, state_of_module
from runtime.evaluation.lifetime import Closable, Lifetime
from runtime.failure.guard import Guard
from runtime.modules.building import build_with_ties, layers_of
from runtime.modules.division import Division
from runtime.modules.layers import LayerLike, StageModule, build_stage, require_layers
from runtime.modules.partition import Partition, divide
from runtime.modules.profile import agreed_profile
from runtime.modules.weights.agreement import RankWeights, digests_of
from runtime.modules.weights.ties import Ties
from runtime.transport import Transport
from schedcc.table.ranges import in_words
from schemas import CheckpointManifest
from schemas.plans import in_circle


class RankLayers(Closable):
    """What a rank holds of a model: built, saved and loaded together with the other ranks'."""

    def __init__(
        self,
        transport: Transport,
        placement: Sequence[int],
        guard: Guard | None,
        timeout: float,
        *,
        owns: bool,
    ) -> None:
        """Take a rank's place; its layers are built by `_build`.

        Args:
            transport: Connection to the other ranks.
            placement: The rank of each stage.
            guard: Of `transport`, where other work on it is guarded as well; default: a new one.
            timeout: Of a new one: seconds without progress after which a run is ended.
            owns: Whether the transport is closed with this.

        Raises:
            TransportError: channels share one queue that lead around in a circle.
        """
        if in_circle(placement):
            transport.separate_channels()
        self._transport, self._placement = transport, placement
        self.stages, self.rank = len(placement), transport.rank
        self.replicas, self.replica = transport.replicas, transport.replica
        self._guard = guard or Guard(transport, timeout=timeout)
        self._lifetime = Lifetime(self, transport, None if guard else self._guard, owns=owns)

    def _build(
        self,
        layers: nn.Sequential | Sequence[LayerLike],
        partition: Partition,
        sample_inputs: Any,
        keyword_inputs: bool,
        *,
        check_weights: bool,
    ) -> None:
        """Build the layers of this rank; arguments, and what is raised, are the evaluator's."""
        entries, transport, name = require_layers(layers), self._transport, self._lifetime.name
        named_layers = layers if isinstance(layers, nn.Sequential) else entries
        profile = partial(
            agreed_profile,
            named_layers,
            transport,
            self._guard.named(name),
            sample_inputs,
            keyword_inputs=keyword_inputs,
        )
        self.boundaries = divide(entries, self._placement, partition, profile)
        self._division = division = Division.of(self.boundaries, self._placement)
        self._guard = self._guard.named(name, division.titles)
        self.stage_ids = division.stages_of(self.rank)
        """The stages on this rank."""
        ties = Ties(entries, division, self.rank)
        built = digests_of(entries, ties.names) if check_weights else None
        tied = dict[Hashable, nn.Module]()

        def build(stage: int) -> StageModule:
            first, stop = self.boundaries[stage : stage + 2]
            module = build_stage(
                named_layers, first, stop, keyword_inputs=keyword_inputs, tied=tied
            )
            return module.to(transport.device)

        self.modules = build_with_ties(entries, ties, division, transport, self._guard, build)
        """The layers of each stage on this rank; nothing keeps the others alive."""
        self._layers = layers_of(self.modules, division)
        self._weights = RankWeights(self._layers, division, transport, ties, built)

    def __repr__(self) -> str:
        """Who this process is: its replica, its rank in that pipeline, and what it holds."""
        if not hasattr(self, "stage_ids"):  # shown by a traceback while it is built
            return object.__repr__(self)
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
