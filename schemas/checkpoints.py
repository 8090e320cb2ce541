"""The manifest of a checkpoint: what its layers hold and where, and what every tensor must be.

::

    DIR/manifest.json                             this, written last
    DIR/save-0f3a.../layer_00.safetensors         the layers, by global index
    DIR/save-0f3a.../layer_01.safetensors
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Frozen, Id

ByteCount = Annotated[Id, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TensorEntry(Frozen):
    """One tensor of a layer."""

    name: str
    """As in the layer's `state_dict()`."""
    dtype: str
    """As torch calls it, without `torch.`: `float32`, `bfloat16`, `int64`."""
    shape: tuple[ByteCount, ...]
    bytes: ByteCount
    sha256: Sha256
    """Of the tensor's elements in row-major order, as they lie in the file."""
    stored_in: ByteCount
    """The layer whose file holds the elements: that of another layer, if they are tied."""
    stored_as: str
    """The name of the tensor in that file."""


class LayerEntry(Frozen):
    """One layer of the model."""

    index: ByteCount
    """Global index: the position in the whole model, whatever stage the layer was on."""
    module: str
    """Name of the layer's class, for people."""
    file: Annotated[str, Field(pattern=r"^layer_[0-9]{2,}\.safetensors$")] | None
    """`None`: the layer has no tensors, or all of them are stored with other layers."""
    bytes: ByteCount
    """Of the file."""
    tensors: tuple[TensorEntry, ...]


class CheckpointManifest(Frozen):
    """All layers of a model in one save."""

    format: Literal["schedcc.checkpoint/1"] = "schedcc.checkpoint/1"
    directory: Annotated[str, Field(pattern="^save-[0-9a-f]{16}$")]
    """Where the files are, beside the manifest. Every save has a directory of its own."""
    layers: tuple[LayerEntry, ...]

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> "CheckpointManifest":
        held: set[tuple[int, str]] = set()
        for index, layer in enumerate(self.layers):
            if layer.index != index:
                raise ValueError(f"layer {index} has the index {layer.index}")
            own = {(t.stored_in, t.stored_as) for t in layer.tensors if t.stored_in == index}
            if bool(own) != (layer.file is not None):
                raise ValueError(f"layer {index} stores {len(own)} tensors in file {layer.file}")
            held |= own
        for layer in self.layers:
            for tensor in layer.tensors:
                if (tensor.stored_in, tensor.stored_as) not in held:
                    raise ValueError(
                        f"tensor {tensor.name} of layer {layer.index} is to be stored as "
                        f"{tensor.stored_as} in layer {tensor.stored_in}, which does not store it"
                    )
        return self


class TensorSummary(Frozen):
    """A tensor, as `pipeval inspect --json` prints it."""

    name: str
    dtype: str
    shape: tuple[ByteCount, ...]
    bytes: ByteCount


class LayerSummary(Frozen):
    """A layer, and what it needs in memory; tied weights count in every layer that has them."""

    index: ByteCount
    module: str
    """Name of its class or kind; empty where the format does not say."""
    parameters: ByteCount
    """Elements of all its tensors, buffers included."""
    bytes: ByteCount
    dtypes: tuple[str, ...]
    tensors: tuple[TensorSummary, ...]


class ProposedStage(Frozen):
    """A stage of a proposed partition."""

    stage_id: ByteCount
    first_layer: ByteCount
    layers: ByteCount
    bytes: ByteCount


class CheckpointInspection(Frozen):
    """What a checkpoint holds, and how it would divide."""

    format: Literal["schedcc.inspection/1"] = "schedcc.inspection/1"
    path: str
    kind: str
    """The format that it is in, for people."""
    parameters: ByteCount
    bytes: ByteCount
    layers: tuple[LayerSummary, ...]
    verified: bool
    """Whether all tensors were read, and have the checksums that the format keeps."""
    unplaced: tuple[str, ...] = ()
    """Names of tensors that belong to no layer, also of those that evaluation does not use."""
    stages: tuple[ProposedStage, ...] = ()
    """A partition whose largest stage is smallest."""
    balanced_by: Literal["bytes", "arithmetic"] = "bytes"
    """What is smallest in it: `arithmetic`, as in `pipeval`, where it is a language model."""
