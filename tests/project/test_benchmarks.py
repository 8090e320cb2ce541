"""The benchmarks run, verify what they time and report it; no test asserts how long it took."""

import runpy
import sys
from datetime import UTC, datetime
from functools import partial

import pytest
import torch
from typer import BadParameter

from benchmarks.__main__ import main
from benchmarks.links import predict
from benchmarks.processes import WrongResultError, require_same
from benchmarks.report.results import (
    INFERENCE,
    LOOPS,
    ONE_PROCESS,
    OWN_AUTO,
    OWN_BLOCKING,
    OWN_GLOO,
    OWN_OVERLAPPED,
    PEERS,
    TORCH_INTERLEAVED,
    WIDE,
    Measured,
    MemoryOf,
    Report,
    Timing,
)
from benchmarks.report.targets import targets
from benchmarks.schedules import predict_schedules
from benchmarks.settings import SETTINGS
from benchmarks.workload import Evaluated
from runtime.distributed import processes
from tests.support.forks import Program

BY_NAME = {setting.name: setting for setting in SETTINGS}


def measured(name: str, **seconds: tuple[float, ...]) -> Measured:
    names = {"one": ONE_PROCESS, "loop": LOOPS[0], "own": OWN_OVERLAPPED, "peer": PEERS[0]}
    timings = [Timing(contender=names[key], seconds=found) for key, found in seconds.items()]
    return Measured(setting=BY_NAME[name], layers_per_stage=1, timings=tuple(timings))


def report(*settings: Measured, memory: tuple[MemoryOf, ...] = ()) -> Report:
    return Report(
        taken=datetime.now(UTC),
        machine="",
        cores=2,
        load=0.0,
        torch="",
        settings=settings,
        memory=memory,
    )


def run_benchmarks(words: list[str]) -> None:
    """The program itself, whose ranks need not import torch again."""
    processes.launch = partial(processes.launch, start_method="fork")  # type: ignore[assignment]
    sys.argv = ["benchmarks", *words]
    runpy.run_module("benchmarks", run_name="__main__")


@pytest.mark.slow
def test_a_quick_run_measures_all_contenders_and_writes_a_report(tmp_path):
    file = tmp_path / "report.json"
    words = ["--quick", "--output", str(file), "--setting", "tiny", "--setting", "links"]
    words += ["--setting", "memory", "--setting", "schedules"]
    done = Program(run_benchmarks, words).ended()
    assert done.returncode == 0, done.stderr
    assert "a quick run is compared with no target" in done.stdout
    assert "at most" not in done.stdout
    found = Report.model_validate_json(file.read_text())
    tiny, links, schedules = found.settings
    names = {t.contender for t in schedules.timings}
    assert names == {ONE_PROCESS, TORCH_INTERLEAVED, *schedules.predicted}
    assert {INFERENCE, WIDE} <= names
    own = {OWN_BLOCKING, OWN_OVERLAPPED}
    assert {t.contender for t in tiny.timings} == {
        ONE_PROCESS,
        *LOOPS,
        *PEERS,
        *own,
        OWN_AUTO,
        OWN_GLOO,
    }
    assert {t.contender for t in links.timings} == {ONE_PROCESS, *own}
    assert set(links.predicted) == own
    assert {memory.engine for memory in found.memory} == {OWN_OVERLAPPED, PEERS[0]}
    assert all(len(memory.peak_bytes) == 2 for memory in found.memory)


def test_an_unknown_setting_is_named():
    with pytest.raises(BadParameter, match="'nothing' is no setting, needed one of compute-heavy"):
        main(setting=["nothing"])


def test_ratios_are_taken_between_neighbours_in_time():
    calm, busy = (1.0, 1.0, 5.0, 5.0, 5.0), (2.0, 2.0, 5.0, 5.0, 10.0)
    found = Timing(contender="a", seconds=busy).ratio(Timing(contender="b", seconds=calm))
    assert found == 2.0


def test_the_ideal_pipeline_follows_from_one_process():
    one = measured("links", one=(64 * 4 * 0.02,))
    assert one.ideal == pytest.approx(67 * 0.02 + 3 * 0.018)


def test_simulation_predicts_full_overlap_of_links():
    links = BY_NAME["links"]
    predicted = predict(links, links.stage_seconds)
    assert predicted[OWN_OVERLAPPED] == pytest.approx(67 * 0.02 + 3 * 0.018)
    assert predicted[OWN_BLOCKING] > 2.6 * predicted[OWN_OVERLAPPED]


def test_simulation_predicts_what_two_stages_on_a_rank_gain():
    setting = BY_NAME["schedules"]
    ranks, t, c = setting.stages, setting.stage_seconds, setting.transfer_seconds
    predicted = predict_schedules(setting, t)
    assert predicted[INFERENCE] == pytest.approx((8 + ranks - 1) * t + (ranks - 1) * c)
    assert predicted[WIDE] == pytest.approx((16 + ranks - 1) * t / 2 + (ranks - 1) * c)


def test_targets_compare_with_loops_peers_and_bounds():
    tiny = measured("tiny", one=(1.0,), loop=(2.0,), own=(2.3,), peer=(2.2,))
    memory = MemoryOf(engine=OWN_OVERLAPPED, micro_batches=8, peak_bytes=(2**20, 9 * 2**20))
    found = {target.what: target for target in targets(report(tiny, memory=(memory,)))}
    assert found[f"overlapped / {LOOPS[0]}"].met
    assert not found[f"overlapped / {PEERS[0]}"].met
    assert found["MiB of a rank, M = 8"].found == 9.0


def test_results_that_differ_by_one_bit_are_refused():
    logits = torch.zeros(2, 2)
    expected = Evaluated([1.0], [logits])
    require_same("same", Evaluated([1.0], [logits.clone()]), expected)
    with pytest.raises(WrongResultError, match="other losses than one process"):
        require_same("loss", Evaluated([1.0 + 2**-52], [logits]), expected)
    off = logits.clone()
    off[1, 1] = 2**-149
    with pytest.raises(WrongResultError, match="other logits than one process"):
        require_same("logits", Evaluated([1.0], [off]), expected)
