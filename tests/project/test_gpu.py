"""`make gpu`: all rows run on the CPU, and what only a GPU runs is called as torch wants it."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
import torch.distributed as dist

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import isolation, ranks, report
from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import APPROACHES, GLOO, LeftOut, approach_in, remember
from benchmarks.gpu.report import Found, Result
from benchmarks.gpu.rows import ROWS, Row
from benchmarks.gpu.rows.spinning import CTAS, _beside
from benchmarks.gpu.stream_transport import LATE, StreamTransport, over_streams
from runtime.transport import NcclSettings
from runtime.transport.torch_distributed.groups.nccl_settings import PROCESS_DEFAULTS
from tests.support.forks import forks

DRY = Machine(dry=True)
CAPTURE_BEGIN = inspect.signature(torch.cuda.CUDAGraph.capture_begin)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    forks()  # the server of the other tests, not one more
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row {row.number}")
def test_a_row_holds_on_the_cpu(row: Row, tmp_path: Path):
    result = isolation.answered(row, Context(DRY, tmp_path))
    assert (result.status, result.number) == ("held", row.number), result.lines
    assert result.lines
    json.dumps(result.numbers)


def test_all_rows_together_take_ten_minutes_at_most():
    assert [row.number for row in ROWS] == list(range(len(ROWS)))
    assert sum(row.limit for row in ROWS) <= command.LIMIT <= 600


class Recorded:
    """`torch.cuda`, whose functions take what the real ones take, and note it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "_sleep", "stream"):
            self._replace(monkeypatch, name, None)
        self._replace(monkeypatch, "max_memory_reserved", 7)
        self._replace(monkeypatch, "current_stream", FakeStream(self))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(self, device))
        monkeypatch.setattr(
            torch.cuda, "Event", lambda *, enable_timing: FakeEvent(self, enable_timing)
        )
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))
        monkeypatch.setattr(torch.cuda, "stream", FakeOn)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *given: self.calls.append(given))
        # Tensors are on the CPU, and everything else is done as on a GPU.
        monkeypatch.setattr(Machine, "device", torch.device("cpu"))

    def _replace(self, monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
        spec = create_autospec(getattr(torch.cuda, name), return_value=value)
        spec.side_effect = lambda *given, **named: self.calls.append((name, *given, named)) or value
        monkeypatch.setattr(torch.cuda, name, spec)


class FakeStream:
    def __init__(self, recorded: Recorded, device: Any = None) -> None:
        self.recorded, self.device = recorded, device

    def wait_event(self, event: "FakeEvent") -> None:
        assert isinstance(event, FakeEvent)
        self.recorded.calls.append("wait_event")

    def wait_stream(self, stream: "FakeStream") -> None:
        assert isinstance(stream, FakeStream)
        self.recorded.calls.append("wait_stream")

    def record_event(self) -> "FakeEvent":
        return FakeEvent(self.recorded)


class FakeEvent:
    def __init__(self, recorded: Recorded, enable_timing: bool = False) -> None:
        self.recorded, self.timed, self.state = recorded, enable_timing, "new"

    def record(self, stream: FakeStream) -> None:
        assert isinstance(stream, FakeStream)
        self.state = "recorded"

    def synchronize(self) -> None:
        assert self.state == "recorded"
        self.state = "reached"

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.timed
        assert end.timed
        assert (self.state, end.state) == ("recorded", "reached")
        return 8.0


class FakeGraph:
    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def capture_begin(self, *given: Any, **named: Any) -> None:
        CAPTURE_BEGIN.bind(self, *given, **named)
        self.recorded.calls.append(f"capture {named['capture_error_mode']}")

    def capture_end(self) -> None:
        self.recorded.calls.append("captured")

    def replay(self) -> None:
        self.recorded.calls.append("replay")


class FakeOn:
    def __init__(self, stream: FakeStream) -> None:
        assert isinstance(stream, FakeStream)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


@pytest.fixture
def cuda(monkeypatch) -> Recorded:
    return Recorded(monkeypatch)


def test_a_gpu_is_asked_as_torch_wants_it(cuda):
    gpu, done = Machine(), []
    gpu.busy(1e-3)
    gpu.poison(64)
    output, graph = gpu.capture(lambda: done.append(1) or "output")
    assert (output, done) == ("output", [1])
    graph.replay()
    gpu.forget_reserved()
    assert gpu.reserved() == 7
    assert gpu.seconds(lambda: done.append(2), 3) >= 0
    names = [call if isinstance(call, str) else call[0] for call in cuda.calls]
    assert names == [
        *("_sleep", "current_stream", "wait_stream", "capture thread_local", "captured", "replay"),
        *("synchronize", "empty_cache"),
        *("reset_peak_memory_stats", "max_memory_reserved", "synchronize", "synchronize"),
    ]
    assert cuda.calls[0][1] == 1_700_000


@pytest.mark.usefixtures("cuda")
def test_products_are_timed_by_events_of_their_own_stream():
    products: list[int] = []
    assert _beside(Machine(), lambda: products.append(1), 4) == 8e-3 / 4
    assert len(products) == 4


def test_threads_copy_late_on_streams_of_their_own(cuda):
    def stage(end: StreamTransport) -> Any:
        place = torch.zeros(4, dtype=torch.uint8)
        if end.rank == 0:
            end.wait(end.post_send([place + 3], 1))
        else:
            end.wait(end.post_receive([place], 0))
        return place.tolist()

    assert over_streams(Machine(), 2, stage)[1] == [3] * 4
    slept = [call for call in cuda.calls if call[0] == "_sleep"]
    assert len(slept) == 2, "before each copy"
    assert {call[1] for call in slept} == {int(LATE * 1.7e9)}
    assert cuda.calls.count("wait_stream") == 4
    assert cuda.calls.count("wait_event") == 1
    assert sum(isinstance(call[-1], FakeStream) for call in cuda.calls) == 2, "the allocator knows"


@pytest.mark.usefixtures("cuda")
def test_ranks_on_one_gpu_join_nccl_with_an_environment_of_their_own(monkeypatch):
    joined: list[dict[str, Any]] = []
    monkeypatch.setattr(ranks, "TCPStore", create_autospec(dist.TCPStore))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: joined.append({"set": device}))
    init = create_autospec(dist.init_process_group)
    init.side_effect = lambda *given, **named: joined.append({"given": given, **named})
    monkeypatch.setattr(dist, "init_process_group", init)
    environment: dict[str, str] = {}
    monkeypatch.setattr(ranks.os, "environ", environment)
    answers: list[Any] = []
    end: Any = SimpleNamespace(send=answers.append)
    work = (lambda _, argument: argument + 1, 4, Machine(), APPROACHES[0], 60.0, end)
    ranks._work(1, 2, 1234, *work)
    assert [answer.value for answer in answers] == [5], answers
    assert joined[1]["given"] == ("nccl",)
    assert joined[1]["device_id"] == joined[0]["set"] == Machine().device
    assert (joined[1]["rank"], joined[1]["world_size"]) == (1, 2)
    assert (
        environment.items()
        >= {
            "NCCL_HOSTID": "schedcc-1",
            "NCCL_NET": "Socket",
            "NCCL_SOCKET_IFNAME": "lo",
            **PROCESS_DEFAULTS,
        }.items()
    )


def test_what_works_is_remembered_for_the_rows_that_need_it(tmp_path):
    with pytest.raises(LeftOut, match="several NCCL ranks do not work here, see row 0"):
        approach_in(tmp_path, Machine())
    remember(tmp_path, None)
    with pytest.raises(LeftOut):
        approach_in(tmp_path, Machine())
    remember(tmp_path, APPROACHES[0])
    assert approach_in(tmp_path, Machine()) == APPROACHES[0]
    assert approach_in(tmp_path, DRY) == GLOO


def left_out(_: Context) -> Found:
    raise LeftOut("not here")


def broken(_: Context) -> Found:
    raise AttributeError("a typo\nand more")


@pytest.mark.parametrize(
    ("ask", "status", "line"),
    [
        (left_out, "left out", "not here"),
        (broken, "failed", "AttributeError: a typo"),
        (lambda _: Found(False, ["no"]), "did not hold", "no"),
    ],
)
def test_a_row_tells_what_became_of_it(ask, status, line, tmp_path):
    found = isolation.answered(Row(3, "x", ask, 1), Context(DRY, tmp_path))
    assert (found.status, found.lines) == (status, [line])


def test_a_row_is_asked_in_a_process_of_its_own_with_a_limit(tmp_path):
    row = next(row for row in ROWS if row.number == 7)
    held = isolation.asked_alone(row, tmp_path, 120, dry=True)
    assert held.status == "held", held.lines
    late = isolation.asked_alone(row, tmp_path, 0.2, dry=True)
    assert late.status == "out of time"
    assert late.lines == ["after 0 s"]


def test_a_row_that_fails_does_not_end_the_others(monkeypatch, tmp_path, capsys):
    def asked(row: Row, folder: Path, limit: float, *, dry: bool) -> Result:
        assert (folder, dry) == (tmp_path, True)
        assert 0 < limit <= row.limit
        status = "failed" if row.number == 2 else "held"
        return Result(row.number, row.title, status, 1.0, ["a | b"], {"x": 1})

    monkeypatch.setattr(command, "asked_alone", asked)
    assert command.main(["--dry", "--output", str(tmp_path)]) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["number"] for row in written["rows"]] == list(range(11))
    assert written["versions"]["torch"] == torch.__version__
    table = (tmp_path / "gpu.md").read_text()
    assert table.startswith("Python 3.")
    assert "| 2 | torture over NCCL, S = 2 and 3 | failed | 1.0 | a \\| b |" in table
    assert table in capsys.readouterr().out


def test_without_a_gpu_nothing_is_asked_unless_it_is_a_dry_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--output", str(tmp_path)]) == 2
    assert "there is no GPU that torch can use" in capsys.readouterr().err


def test_the_versions_name_the_gpu_and_nccl(monkeypatch):
    properties = SimpleNamespace(name="H100", total_memory=80 * 2**30, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 29, 3))
    found = report.versions(dry=False)
    assert found["NCCL"] == "2.29.3"
    assert found["GPU"] == "1 x H100, 80 GiB, 132 multiprocessors"


def test_the_default_number_of_ctas_is_among_those_that_are_measured():
    assert NcclSettings().max_ctas in CTAS
