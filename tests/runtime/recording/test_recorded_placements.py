"""What ranks that hold several stages record is what their plan says."""

import pytest

from runtime import Evaluator
from schedcc import compile_pipeline
from schedcc.recordings import conform, postmortem, read_recording
from schedcc.recordings.recording import PipelineId
from tests.support.models_for_tests import batches, over_stages


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("schedule", ["v_shape", "interleaved"])
def test_ranks_with_several_stages_record_the_plan_that_they_execute(tmp_path, schedule, overlap):
    def call(evaluator: Evaluator) -> None:
        evaluator.eval_batch(iter(batches([2, 2, 2, 2])), num_micro_batches=4)

    network = {"queue": "channel"}
    options = {"schedule": schedule, "overlap": overlap, "record": tmp_path}
    over_stages(2, call, network=network, stages=4, **options)
    recording = read_recording(tmp_path)
    variant = "channel" if overlap else False  # each channel has a queue of its own there
    plan = compile_pipeline(4, 4, schedule=schedule, ranks=2, overlap=variant)
    assert recording.damages == ()
    assert recording.plan(PipelineId(0), 0) == plan
    assert conform(plan, recording).ok
    found = postmortem(recording)
    assert found.cause is None
    assert [status.stages for status in found.ranks] == [plan.stages_of(0), plan.stages_of(1)]
    sent = sum(status.activity.sent_bytes for status in found.ranks)
    assert sent == sum(status.activity.received_bytes for status in found.ranks) > 0
