"""The formulas that are proved are those of compiled plans, instruction by instruction."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import compile_pipeline
from tests.proofs.model import InferenceModel, InterleavedModel, Model, VShapeModel
from tests.proofs.variants import (
    blocking,
    held_entries,
    hoisted_in,
    overlapped_in_order,
    overlapped_on_a_chain,
)


def programs(model: Model, families) -> list[list[list[dict]]]:
    """`[ranks][steps]`: the instructions that a model has for known sizes."""
    found = [
        i
        for family in families
        for s in range(model.stages)
        for m in range(model.micro_batches)
        for i in [family(s, m)]
        if i.exists
    ]
    steps = [[[] for _ in range(model.steps)] for _ in range(model.ranks)]
    for i in sorted(found, key=lambda i: (i.rank, i.key)):
        fields = {"stage": i.stage, "micro_batch": i.micro_batch, "buffer": i.buffer}
        for name in ("peer", "peer_buffer"):
            if getattr(i, name) is not None:
                fields[name] = getattr(i, name)
        steps[i.rank][i.step].append(i.op(**fields))
    return steps


def assert_compiled(model: Model, families, overlap: bool) -> None:
    plan = compile_pipeline(
        model.micro_batches,
        model.stages,
        schedule=model.schedule,
        ranks=model.ranks,
        overlap=overlap,
    )
    assert model.num_buffers == plan.num_buffers
    assert [model.rank(stage) for stage in range(model.stages)] == list(plan.placement)
    found = programs(model, families)
    for program in plan.programs:
        assert [list(step) for step in program.steps] == found[program.rank], program.rank


def in_order(model: Model) -> list:
    """The families of the overlapped variant in order, with what holds the posts worked out."""
    free = replace(model, behind=lambda *_: -1)
    return overlapped_in_order(replace(model, behind=hoisted_in(held_entries(free))))


micro_batches, ranks, held = st.integers(1, 9), st.integers(1, 6), st.integers(1, 4)


@settings(max_examples=60)
@given(micro_batches=micro_batches, stages=st.integers(1, 8), overlap=st.booleans())
def test_the_model_of_inference_is_what_is_compiled(micro_batches, stages, overlap):
    model = InferenceModel(micro_batches, stages, stages)
    families = overlapped_on_a_chain(model) if overlap else blocking(model)
    assert_compiled(model, families, overlap)


@settings(max_examples=60)
@given(micro_batches=micro_batches, ranks=ranks, held=held, overlap=st.booleans())
def test_the_model_of_interleaved_is_what_is_compiled(micro_batches, ranks, held, overlap):
    model = InterleavedModel(micro_batches, held * ranks, ranks)
    if not overlap:
        families = blocking(model)
    elif held == 1:
        families = overlapped_on_a_chain(model)
    else:
        families = in_order(model)
    assert_compiled(model, families, overlap)


@settings(max_examples=60)
@given(micro_batches=micro_batches, ranks=ranks, overlap=st.booleans())
def test_the_model_of_the_v_shape_is_what_is_compiled(micro_batches, ranks, overlap):
    model = VShapeModel(micro_batches, 2 * ranks, ranks)
    assert_compiled(model, in_order(model) if overlap else blocking(model), overlap)
