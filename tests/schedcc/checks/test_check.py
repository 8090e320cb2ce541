"""`check` as a whole: what it asks, how it reports, and that nothing can make it fail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import UnsoundPlanError, check, compile_pipeline, compile_stage, require_sound
from schedcc.checks.limit import LISTED
from schedcc.testing.plans import SYMBOLS, pipeline
from schedcc.verify import verdict
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
    Finding,
    MoveLogits,
    PipelinePlan,
    RankProgram,
    ReduceLoss,
    Report,
    StagePlan,
    TransportModel,
)

ALONE = ("placement", "structure", "coverage", "buffers", "splits")
TOGETHER = ("ranks", "channels", "collectives", "deadlock", "latency")


def test_a_pipeline_is_asked_everything():
    expected = Report(checks=ALONE + TOGETHER, transport=TransportModel())
    assert check(compile_pipeline(2, 3)) == expected


def test_a_stage_is_asked_what_it_can_answer_alone():
    assert check(compile_stage(2, 3, 1)) == Report(checks=ALONE)


def test_a_stage_alone_cannot_know_whether_its_transfers_are_met():
    lonely = pipeline("L0 F0 S0", "")
    assert check(lonely.stage(0)).ok
    assert not check(lonely).ok


def test_findings_come_in_the_order_of_the_checks_and_of_the_stages():
    findings = check(pipeline("S0", "F0 F0")).findings
    assert [(f.code, f.stage_id) for f in findings] == [
        ("coverage", 0),
        ("coverage", 1),
        ("buffer", 0),
        *[("buffer", 1)] * 4,
        ("channel", 0),
    ]


def test_a_warning_does_not_make_a_plan_unsound():
    warning = Finding(code="channel", message="slow", severity="warning")
    assert Report(checks=(), findings=(warning,)).ok
    assert not Report(checks=(), findings=(warning, Finding(code="buffer", message="bad"))).ok


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "buffer: lost"),
        ({"stage_id": 0}, "buffer: stage 0: lost"),
        ({"stage_id": 3, "step": 0}, "buffer: stage 3, step 0: lost"),
    ],
)
def test_a_finding_says_where_it_is(fields, text):
    assert str(Finding(code="buffer", message="lost", **fields)) == text


def test_a_sound_plan_is_handed_on():
    plan = compile_pipeline(2, 2)
    assert require_sound(plan) is plan


def test_an_unsound_plan_is_refused_with_all_its_findings():
    with pytest.raises(UnsoundPlanError) as raised:
        require_sound(pipeline("L0", "R0 L0 F0"))
    assert str(raised.value) == (
        "coverage: stage 0: micro-batch 0 never forwarded; "
        "buffer: stage 0: the input of buffer 0 still holds micro-batch 0 at the end, "
        "which nothing has read; "
        "channel: stage 1, step 0: channel 0->1: micro-batch 0 is received once more than sent: "
        "RecvActivation(micro_batch=0) waits for a send that never comes"
    )


ids = st.integers(-1, 3) | st.integers()
step_instructions = st.one_of(
    st.builds(
        kind,
        stage=ids,
        micro_batch=ids,
        buffer=ids,
        **({} if symbol in "LF" else {"peer": ids}),
        **({"peer_buffer": ids} if symbol == "C" else {}),
    )
    for symbol, kind in SYMBOLS.items()
)
epilogue_instructions = st.one_of(
    st.builds(ReduceLoss, reduction=st.sampled_from(["avg", "sum", "mean_of_means", "none"])),
    st.builds(AllReduceLoss),
    st.builds(BroadcastLoss, source=ids),
    st.builds(ComputeMetrics),
    st.builds(AllReduceMetrics),
    st.builds(CollectLogits),
    st.builds(MoveLogits, source=ids, destination=ids),
    st.builds(BroadcastLogits, source=ids),
)
programs = st.builds(
    RankProgram,
    rank=ids,
    steps=st.lists(st.lists(step_instructions, max_size=5).map(tuple), max_size=3).map(tuple),
    epilogue=st.lists(epilogue_instructions, max_size=3).map(tuple),
)
counts = st.integers(1, 3) | st.integers(min_value=1)
plans = st.builds(
    PipelinePlan,
    micro_batches=counts,
    stages=counts,
    ranks=counts,
    placement=st.lists(ids, max_size=4).map(tuple),
    num_buffers=counts,
    programs=st.lists(programs, max_size=3).map(tuple),
)


@settings(max_examples=120)
@given(plan=plans)
def test_whatever_the_plan_the_checks_report_and_do_not_fail(plan):
    report = check(plan)
    assert report.checks == ALONE + TOGETHER
    assert PipelinePlan.model_validate_json(plan.model_dump_json()) == plan
    for program in plan.programs:
        stage = plan.rank(program.rank)
        assert StagePlan.model_validate_json(stage.model_dump_json()) == stage
        check(stage)


def test_a_plan_has_no_stage_that_it_does_not_name():
    with pytest.raises(KeyError, match=r"^2$"):
        compile_pipeline(2, 2).stage(2)


@pytest.mark.parametrize("backend", ["networkx", "arrays"])
@pytest.mark.parametrize(
    ("code", "first", "far"),
    [
        ("latency", f"R0:{2**62} " * 20, "S0:0 " * 20),
        ("deadlock", f"R0:{2**62} S0:{2**62}", "R0:0 S0:0"),
    ],
)
def test_programs_of_stages_beyond_all_numbers_get_their_findings(code, first, far, backend):
    plan = pipeline(first, far)
    beyond = plan.programs[1].model_copy(update={"rank": 10**25})
    plan = plan.model_copy(update={"programs": (plan.programs[0], beyond)})
    assert {"structure", code} <= {
        finding.code.value for finding in verdict(plan, None, backend).findings
    }


def test_findings_of_a_kind_beyond_a_number_are_counted(run, tmp_path):
    few = 300
    plan = compile_pipeline(few, 3)
    first, *others = plan.programs
    without = tuple(
        program.model_copy(
            update={
                "steps": tuple(
                    tuple(i for i in step if i.op != "RecvActivation") for step in program.steps
                )
            }
        )
        for program in others
    )
    plan = plan.model_copy(update={"programs": (first, *without)})
    listed = check(plan).findings
    by_code = {code: [f for f in listed if f.code == code] for code in ("buffer", "channel")}
    for code, findings in by_code.items():
        assert len(findings) == LISTED + 1
        assert sum(finding.count for finding in findings) == 2 * few
        assert findings[-1].severity == "error"
        stages = "stages 1-2" if code == "buffer" else "stages 0-1"
        assert str(findings[-1]) == f"{code}: 500 more of these, on {stages}"
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    assert f"{file}: 1200 findings (placement" in run("check", file).out
    alone = check(plan.stage(1)).findings
    assert str(alone[-1]) == "buffer: stage 1: 200 more of these"


@pytest.mark.parametrize(
    "repeated",
    [
        [BroadcastLoss(source=1)],
        [BroadcastLogits(source=1), CollectLogits(), MoveLogits(source=1, destination=0)],
        [MoveLogits(source=1, destination=-n) for n in range(40)],
        [ReduceLoss(), BroadcastLoss(source=0), AllReduceLoss(), BroadcastLoss(source=1)],
    ],
    ids=["one", "logits", "all others", "losses"],
)
def test_twice_as_much_that_is_wrong_has_twice_as_many_findings(repeated):
    plan = compile_pipeline(2, 3)

    def found(times: int) -> int:
        spoilt = tuple(
            program.model_copy(update={"epilogue": (*program.epilogue, *repeated * times)})
            if program.rank != 1
            else program
            for program in plan.programs
        )
        report = check(plan.model_copy(update={"programs": spoilt}))
        return sum(finding.count for finding in report.findings)

    few, many = found(25), found(100)
    assert few > 25
    assert many < 4.5 * few
