"""What a checkpoint holds, and how it would divide into stages."""

from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.checkpoint import CheckpointError, Source
from runtime.checkpoint.tensors import dtype_name
from runtime.language.models import ModelError, layer_costs, lazy_causal_lm, locate_model
from runtime.language.models.cost import DEFAULT_SEQUENCE_LENGTH
from runtime.language.models.sources import open_source
from runtime.language.models.weights.hugging_face import HuggingFaceCheckpoint
from runtime.modules.partition import balanced
from schedcc.errors import require_count
from schedcc.io.plain_text import encodable, visible
from schemas import CheckpointInspection, LayerSummary, ProposedStage, TensorSummary


def inspection(
    name: str, stages: int | None = None, *, verify: bool = False
) -> CheckpointInspection:
    """Look into a checkpoint; only headers are read, unless it is to be verified.

    Args:
        name: As of `runtime.language.models.sources.open_source`.
        stages: Propose a partition into so many stages: that of `pipeval` with windows of
            `DEFAULT_SEQUENCE_LENGTH` tokens, and where there is no language model one by bytes.
        verify: Whether all tensors are read and compared with the checksums that there are.

    Raises:
        ValueError: it cannot be read, is damaged, or has fewer layers than stages.
    """
    source = open_source(name)
    layers = tuple(_layer(source, index) for index in range(source.layers))
    if verify:
        for layer in layers:
            source.verify(layer.index)
    proposal: tuple[ProposedStage, ...] = ()
    costs: list[float] | None = None
    if stages is not None:
        require_count("stages", stages)
        costs = _arithmetic(name)
        proposal = _proposal(layers, stages, costs)
    return CheckpointInspection(
        path=encodable(str(source.path)),
        kind=source.kind,
        parameters=sum(layer.parameters for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
        layers=layers,
        verified=verify,
        unplaced=_unplaced(source),
        stages=proposal,
        balanced_by="bytes" if costs is None else "arithmetic",
    )


def _unplaced(source: Source) -> tuple[str, ...]:
    if not isinstance(source, HuggingFaceCheckpoint):
        return ()
    return tuple(sorted([*source.unexpected(), *source.left_out()]))


def print_inspection(found: CheckpointInspection) -> None:
    """Draw tables for people."""
    console = Console()
    verified = ", all tensors read and as they were saved" if found.verified else ""
    console.print(
        f"{visible(found.path)}: {found.kind}, {len(found.layers)} layers, "
        f"{found.parameters:,} parameters, {_size(found.bytes)}{verified}",
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
    single = len(found.layers) == 1
    console.print(_tensor_table(found.layers[0]) if single else _layer_table(found))
    if found.unplaced:
        names = [visible(name) for name in found.unplaced[:5]]
        names += ["..."] * (len(found.unplaced) > 5)
        console.print(
            f"tensors that belong to no layer ({len(found.unplaced)}): {', '.join(names)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if found.stages:
        console.print(_stage_table(found))


def _layer(source: Source, index: int) -> LayerSummary:
    tensors = tuple(
        TensorSummary(
            name=name,
            dtype=dtype_name(stored.spec.dtype),
            shape=stored.spec.shape,
            bytes=stored.spec.bytes,
        )
        for name, stored in source.tensors(index).items()
    )
    return LayerSummary(
        index=index,
        module=source.module(index),
        parameters=sum(stored.spec.numel for stored in source.tensors(index).values()),
        bytes=sum(tensor.bytes for tensor in tensors),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors})),
        tensors=tensors,
    )


def _arithmetic(name: str) -> list[float] | None:
    """What `pipeval` balances: the arithmetic of each layer; none where there is no such model."""
    try:
        model = lazy_causal_lm(locate_model(name))
    except (ModelError, CheckpointError):
        return None
    return layer_costs(model.layers, DEFAULT_SEQUENCE_LENGTH - 1)


def _proposal(
    layers: tuple[LayerSummary, ...], stages: int, costs: list[float] | None
) -> tuple[ProposedStage, ...]:
    sizes = [layer.bytes for layer in layers]
    boundaries = balanced(sizes if costs is None else costs, stages)
    return tuple(
        ProposedStage(
            stage_id=stage, first_layer=first, layers=stop - first, bytes=sum(sizes[first:stop])
        )
        for stage, (first, stop) in enumerate(pairwise(boundaries))
    )


def _layer_table(found: CheckpointInspection) -> Table:
    table = Table("layer", "module")
    for column in ("tensors", "parameters", "size"):
        table.add_column(column, justify="right")
    table.add_column("dtypes")
    for layer in found.layers:
        table.add_row(
            str(layer.index),
            _plain(layer.module or "-"),
            str(len(layer.tensors)),
            f"{layer.parameters:,}",
            _size(layer.bytes),
            ", ".join(layer.dtypes) or "-",
        )
    return table


def _tensor_table(layer: LayerSummary) -> Table:
    table = Table("tensor", "dtype", "shape")
    table.add_column("size", justify="right")
    for tensor in layer.tensors:
        table.add_row(
            _plain(tensor.name), tensor.dtype, str(list(tensor.shape)), _size(tensor.bytes)
        )
    return table


def _stage_table(found: CheckpointInspection) -> Table:
    how = "as pipeval divides them" if found.balanced_by == "arithmetic" else "by bytes"
    table = Table("stage", "layers", title=f"{len(found.stages)} stages, {how}")
    table.add_column("size", justify="right")
    table.add_column("share", justify="right")
    for stage in found.stages:
        last = stage.first_layer + stage.layers - 1
        share = stage.bytes / found.bytes if found.bytes else 0.0
        layers = f"{stage.first_layer}-{last}" if stage.layers > 1 else str(last)
        table.add_row(str(stage.stage_id), layers, _size(stage.bytes), f"{share:.1%}")
    return table


def _plain(text: str) -> Text:
    """Text from outside, which is neither markup nor a command to the terminal."""
    return Text(visible(text))


def _size(count: int) -> str:
    """Bytes for people, in powers of 1024."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
