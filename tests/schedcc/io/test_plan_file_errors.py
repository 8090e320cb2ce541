"""Files that are no plan are refused in one line, which names the first flaw."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schedcc import PlanFileError, check, compile_pipeline
from schedcc.io.picture import draw, fitting
from schedcc.io.plan_files import read_plan
from schemas import PipelinePlan


def example() -> Any:
    return json.loads(compile_pipeline(2, 2).model_dump_json())


def one_line(file: Path) -> str:
    """The complaint about a file, without its name."""
    with pytest.raises(PlanFileError) as raised:
        read_plan(file)
    message = str(raised.value)
    assert message.startswith(f"{file}: ")
    assert message.isprintable()  # hence one line
    assert len(message) < len(str(file)) + 400
    return message.removeprefix(f"{file}: ")


def test_a_file_that_is_missing_or_a_directory_cannot_be_read(tmp_path):
    assert one_line(tmp_path / "none.json") == "cannot be read: No such file or directory"
    assert one_line(tmp_path) == "cannot be read: Is a directory"


@pytest.mark.parametrize(
    "content",
    [b"", b"plan", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}', b'"\\ud800"', b"1" * 5000],
    ids=["empty", "word", "cut", "deep", "binary", "NaN", "surrogate", "huge"],
)
def test_what_is_not_json_is_said_to_be_none(tmp_path, content):
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    assert one_line(file).startswith("not JSON: ")


FORMATS = (
    "needed a 'format' of 'schedcc.plan/2' or 'schedcc.stage-plan/2' or 'schedcc.plan/1' "
    "or 'schedcc.stage-plan/1'"
)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("null", "found None, needed a JSON object"),
        ("[1, 2]", "found [1, 2], needed a JSON object"),
        ("{}", f"found None, {FORMATS}"),
        ('{"format": "schedcc.plan/3"}', f"found 'schedcc.plan/3', {FORMATS}"),
        ('{"format": ["schedcc.plan/1"]}', f"found ['schedcc.plan/1'], {FORMATS}"),
        ('{"format": "a\\nb"}', f"found 'a\\nb', {FORMATS}"),
        (json.dumps({"format": "x" * 999}), f"found '{'x' * 56}..., {FORMATS}"),
        ('{"format": "schedcc.plan/1"}', "micro_batches is missing"),
        ('{"format": "schedcc.stage-plan/1"}', "micro_batches is missing"),
    ],
)
def test_what_is_not_of_a_known_format_is_no_plan(tmp_path, content, complaint):
    file = tmp_path / "plan.json"
    file.write_text(content)
    assert one_line(file) == f"not a plan: {complaint}"


FORWARD = {"op": "ForwardPass", "stage": 0, "micro_batch": 0, "buffer": 0}
STEP_OPS = (
    "'LoadMicroBatch', 'ForwardPass', 'CopyActivation', 'RecvActivation', 'SendActivation', "
    "'PostRecvActivation', 'WaitRecvActivation', 'PostSendActivation', 'WaitSendActivation', "
    "'GroupStart', 'GroupEnd'"
)
EPILOGUE_OPS = (
    "'ReduceLoss', 'AllReduceLoss', 'ComputeMetrics', 'AllReduceMetrics', 'BroadcastLoss', "
    "'CollectLogits', 'MoveLogits', 'BroadcastLogits'"
)
INTEGER = "needed a valid integer"


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (["micro_batches"], True, f"micro_batches is True, {INTEGER}"),
        (["micro_batches"], 2.0, f"micro_batches is 2.0, {INTEGER}"),
        (["micro_batches"], "2", f"micro_batches is '2', {INTEGER}"),
        (["stages"], None, f"stages is None, {INTEGER}"),
        (["micro_batches"], -1, "micro_batches is -1, needed at least 0"),
        (["stages"], 0, "stages is 0, needed at least 1"),
        (["num_buffers"], -1, "num_buffers is -1, needed at least 1"),
        (["schedule"], 3, "schedule is 3, needed a valid string"),
        (["programs"], {}, "programs is {}, needed a list"),
        (["programs"], "ab", "programs is 'ab', needed a list"),
        (["programs", 1], 7, "programs[1] is 7, needed an object"),
        (["programs", 1], {"steps": []}, "programs[1].rank is missing"),
        (["programs", 0, "rank"], False, f"programs[0].rank is False, {INTEGER}"),
        (["programs", 0, "steps"], None, "programs[0].steps is None, needed a list"),
        (["programs", 0, "steps", 2], 1, "programs[0].steps[2] is 1, needed a list"),
        (["programs", 0, "steps", 0, 1], 1, "programs[0].steps[0][1] is 1, needed an object"),
        (
            ["programs", 0, "steps", 0, 1],
            {},
            "programs[0].steps[0][1] is {}, needed an instruction with its 'op'",
        ),
        (
            ["programs", 0, "steps", 0, 1],
            {"op": "ForwardPass", "stage": 0, "buffer": 0},
            "programs[0].steps[0][1].micro_batch is missing",
        ),
        (
            ["programs", 0, "steps", 0, 1, "buffer"],
            1.0,
            f"programs[0].steps[0][1].buffer is 1.0, {INTEGER}",
        ),
        (
            ["programs", 0, "steps", 0, 1],
            {**FORWARD, "peer": 1},
            "programs[0].steps[0][1].peer is not a key that this instruction has",
        ),
        (
            ["programs", 0, "steps", 0, 1],
            {**FORWARD, "Peer": 1},
            "programs[0].steps[0][1].Peer is not a key that this instruction has",
        ),
        (
            ["programs", 0, "steps", 0, 1],
            {**FORWARD, "a\nb": 1},
            "programs[0].steps[0][1]['a\\nb'] is not a key that this instruction has",
        ),
        (
            ["programs", 0, "steps", 0, 1],
            {**FORWARD, "a" * 5000: 1},
            f"programs[0].steps[0][1]['{'a' * 56}...] is not a key that this instruction has",
        ),
        (
            ["programs", 0, "steps", 0, 1, "op"],
            "Backward\nPass",
            f"programs[0].steps[0][1].op is 'Backward\\nPass', needed one of {STEP_OPS}",
        ),
        (
            ["programs", 0, "steps", 0, 1],
            {"op": "CollectLogits"},
            f"programs[0].steps[0][1].op is 'CollectLogits', needed one of {STEP_OPS}",
        ),
        (
            ["programs", 1, "epilogue", 0],
            FORWARD,
            f"programs[1].epilogue[0].op is 'ForwardPass', needed one of {EPILOGUE_OPS}",
        ),
        (
            ["programs", 1, "epilogue", 0, "reduction"],
            "max",
            "programs[1].epilogue[0].reduction is 'max', "
            "needed 'avg', 'sum', 'mean_of_means' or 'none'",
        ),
    ],
)
def test_the_first_flaw_of_what_is_nearly_a_plan_is_named(tmp_path, place, value, complaint):
    data = example()
    target = data
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    assert one_line(file) == f"not a plan: {complaint}"


EXTENSIONS = "(extensions begin with 'x-')"
PROGRAM = f"a program, which has 'rank', 'steps', 'epilogue' {EXTENSIONS}"


@pytest.mark.parametrize(
    ("place", "key", "complaint"),
    [
        ([], "micro_batch", f"a plan, did you mean 'micro_batches'? {EXTENSIONS}"),
        ([], "Programs", f"a plan, did you mean 'programs'? {EXTENSIONS}"),
        ([], "num-buffers", f"a plan, did you mean 'num_buffers'? {EXTENSIONS}"),
        (
            [],
            "made_by",
            "a plan, which has 'format', 'schedule', 'micro_batches', 'stages', 'ranks', "
            f"'placement', 'num_buffers', 'programs' {EXTENSIONS}",
        ),
        (["programs", 1], "epilog", f"a program, did you mean 'epilogue'? {EXTENSIONS}"),
        (["programs", 1], "step", f"a program, did you mean 'steps'? {EXTENSIONS}"),
        (["programs", 1], "device", PROGRAM),
        (["programs", 1], "micro_batches", PROGRAM),
        (["programs", 1], "X-device", PROGRAM),
        (["programs", 1], "x_device", PROGRAM),
    ],
)
def test_a_key_that_is_neither_known_nor_an_extension_is_refused(
    tmp_path, run, place, key, complaint
):
    data = example()
    target = data
    for part in place:
        target = target[part]
    target[key] = target.pop("epilogue") if key == "epilog" else []
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    path = "programs[1]" if place else ""
    named = f".{key}" if key.isidentifier() else f"['{key}']"
    needed = f"not a plan: {path}{named} is not a key of {complaint}".replace(": .", ": ")
    assert one_line(file) == needed
    shown = run("check", file)
    assert (shown.status, shown.out, shown.err) == (2, "", f"schedcc: {file}: {needed}\n")
    with pytest.raises(ValidationError, match=f"'{key}' is not a key of "):
        PipelinePlan.model_validate(data)


def test_a_misspelled_key_of_an_instruction_is_told_with_the_right_one(tmp_path):
    data = example()
    data["programs"][0]["steps"][0][1]["microbatch"] = 0
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    assert one_line(file) == (
        "not a plan: programs[0].steps[0][1].microbatch is not a key that this instruction has, "
        "did you mean 'micro_batch'?"
    )


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('{"format"', '{"stages": 3, "format"', "stages"),
        ('{"rank": 1', '{"rank": 0, "rank": 1', "programs[1].rank"),
        ('"buffer": 0}', '"buffer": 0, "buffer": 1}', "programs[0].steps[0][0].buffer"),
        ('{"format"', '{"x-a": {"b": [1, {"c": 1, "c": 1}]}, "format"', "[x-a].b[1].c"),
        ('{"format"', '{"f\\u006frmat": "other", "format"', "format"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, old, new, place):
    text = json.dumps(example())
    assert old in text
    file = tmp_path / "plan.json"
    file.write_text(text.replace(old, new, 1))
    expected = place.replace("[x-a]", "['x-a']")
    assert one_line(file) == f"not a plan: {expected} is there twice, needed once"


def test_several_flaws_are_counted(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(example()).replace('"micro_batch": 1', '"micro_batch": null'))
    place = "programs[0].steps[1][0].micro_batch"
    assert one_line(file) == f"not a plan: {place} is None, {INTEGER} (5 more)"


def nodes(data: object, path: tuple = ()) -> list[tuple]:
    """The path of every value inside JSON data."""
    if not isinstance(data, dict | list):
        return [path]
    items = data.items() if isinstance(data, dict) else enumerate(data)
    inner = [found for key, value in items for found in nodes(value, (*path, key))]
    return [path, *inner] if path else inner


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=100)
@given(choice=st.integers(0, 10**6), value=JSON)
def test_a_file_with_anything_anywhere_is_a_plan_or_refused_in_one_line(
    tmp_path_factory, choice, value
):
    data = target = example()
    paths = nodes(data)
    *place, key = paths[choice % len(paths)]
    for part in place:
        target = target[part]
    target[key] = value
    file = tmp_path_factory.getbasetemp() / "anything.json"
    file.write_text(json.dumps(data))
    try:
        plan = read_plan(file)
    except PlanFileError:
        one_line(file)
    else:
        check(plan)
        draw(plan, fitting(plan, 80))
        assert json.loads(plan.model_dump_json()).keys() >= data.keys()
