"""`pipeval` from the command line: by itself, under torchrun, and with bad input."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import schedcc
from runtime.cli import main
from schedcc import __version__, compile_pipeline
from schedcc.recordings.conform import conform
from schedcc.recordings.files import read_recording
from schedcc.recordings.postmortem import postmortem
from schemas import LanguageModelEvaluation
from tests.support.forks import pipeval, without_gpus
from tests.support.paths import ROOT
from tests.support.tiny_models import saved_llama, tiny_tokenizer

TEXT = "ab ab 12 cd\n\nthe quick brown fox\njumps over the lazy dog, 1234 times\n" * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *map(str, command)]
    with without_gpus():  # as those that are forks
        return subprocess.run(words, capture_output=True, text=True, timeout=240)


def of_program(*command: object) -> LanguageModelEvaluation:
    return evaluation(run(*command, "--json"))


def evaluate(*options: object) -> LanguageModelEvaluation:
    return evaluation(pipeval(*options, "--json"))


def evaluation(done: "subprocess.CompletedProcess[str]") -> LanguageModelEvaluation:
    assert done.returncode == 0, done.stderr
    return LanguageModelEvaluation.model_validate_json(done.stdout)


def arguments(model: Path, text: Path) -> list[object]:
    sizes = ["--sequence-length", 16, "--micro-batch-size", 3, "--threads", 1]
    return ["--model", model, "--text", text, *sizes]


@pytest.mark.slow
def test_stages_started_by_pipeval_or_by_torchrun_give_the_loss_of_one_process(
    model, text, tmp_path, capsys
):
    record = ["--record", tmp_path / "recording"]
    alone = of_program("-m", "runtime", *arguments(model, text), "--stages", 3, "--verify", *record)
    assert alone.verification is not None
    assert alone.verification.passed
    assert alone.verification.identical_logits == alone.micro_batches
    assert (alone.stages, alone.backend) == (3, "gloo")
    assert [stage.stage_id for stage in alone.stage_summaries] == [0, 1, 2]
    assert sum(stage.layers for stage in alone.stage_summaries) == 5
    length = len(tiny_tokenizer()(TEXT)["input_ids"])
    full, rest = divmod(length, 16)
    assert alone.windows == full + (rest >= 2)
    assert alone.tokens == full * 15 + max(0, rest - 1)

    recording = read_recording(tmp_path / "recording")
    assert postmortem(recording).cause is None
    assert conform(compile_pipeline(alone.micro_batches, 3, overlap=True), recording).ok
    again = [*map(str, [*arguments(model, text), "--stages", 3, *record])]
    status, errors = in_this_process(again, capsys)
    assert (status, errors.count("\n")) == (2, 1)
    assert "already holds a recording (rank_00000.jsonl)" in errors

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    blocking = [*arguments(model, text), "--stages", 2, "--no-overlap", "--channels", "shared"]
    spread = of_program(*torchrun, "-m", "runtime", *blocking)
    assert spread.loss == alone.loss
    assert spread.stages == 2


def test_the_report_for_people_shows_loss_time_and_verification(model, tmp_path):
    text = tmp_path / "corpus[" / "old] [red]:smile:\x1b[2J.txt"
    text.parent.mkdir()
    text.write_text(TEXT)
    options = ["--stages", 1, "--verify", "--documents", "lines", "--max-windows", 2]
    done = pipeval(*arguments(model, text), *options)
    assert done.returncode == 0, done.stderr
    for part in ("2 windows of 16 tokens", "perplexity", "tokens per second", "forward"):
        assert part in done.stdout
    assert f"{text.parent}/old] [red]:smile:\\x1b[2J.txt: 2 windows" in done.stdout
    how = "executed: inference, overlapped, float32 weights, channels memory, schedcc "
    assert how + __version__ in done.stdout
    assert "one process: identical: loss" in done.stdout
    assert "bit-identical in 1 of 1 micro-batches" in done.stdout


@pytest.mark.slow
def test_a_terminal_sees_the_progress_of_the_micro_batches(model, text):
    ours, theirs = pty.openpty()
    words = ["-m", "runtime", *arguments(model, text), "--max-windows", 4, "--json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["micro_batches"] == 2
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "2/2 micro-batches" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such"], "model 'no/such' does not exist"),
        (["--stages", "6"], "6 stages for the 5 layers of"),
        (["--stages", "0"], "stages is 0, needed an integer of at least 1"),
        (["--text", "no/such.txt"], "no/such.txt"),
        (["--sequence-length", "1000"], "is too long for"),
        (["--sequence-length", "1"], "sequence_length is 1, and at least 2 is needed"),
        (["--micro-batch-size", "0"], "micro_batch_size is 0, and at least 1 is needed"),
        (["--max-windows", "0"], "max_windows is 0, and at least 1 is needed"),
        (["--threads", "0"], "threads is 0, needed an integer of at least 1"),
        (["--threads", "99999"], "threads is 99999, needed at most 1024"),
        (["--timeout", "0"], "timeout is 0 seconds, needed more than 0"),
        (["--timeout", "nan"], "timeout is nan seconds, needed more than 0"),
        (["--timeout", "soon"], "'soon'"),
        (["--stages", "2.5"], "'2.5'"),
        (["--documents", "words"], "'words'"),
        (["--separator-id", "1"], "separator_id is 1, but documents is 'whole'"),
        (["--record", "/dev/null"], "/dev/null is no directory, needed a new or empty one"),
        (["--windows", "3"], "No such option: --windows"),
        (["--stride", "17"], "stride is 17, and at most 16 is needed"),
        (["--partition", "0,6"], "partition is [0, 6], needed 3 increasing boundaries from 0 to 5"),
        (["--partition", "0,x"], "partition is '0,x', needed numbers of layers"),
        (["--per-token", "no/such/file"], "no/such/file cannot be written, needed a file in"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(model, text, options, message, capsys):
    usual = {"--model": str(model), "--text": str(text), "--sequence-length": "16"}
    usual |= dict(zip(options[::2], options[1::2], strict=True))
    status, errors = in_this_process([word for pair in usual.items() for word in pair], capsys)
    assert status == 2
    assert message in errors
    assert errors.startswith("pipeval: ")
    assert errors.count("\n") == 1


def test_an_empty_text_is_refused(model, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    usual = ["--model", str(model), "--text", str(empty), "--sequence-length", "16"]
    status, errors = in_this_process(usual, capsys)
    assert status == 2
    assert "empty.txt" in errors
    assert errors.count("\n") == 1


def test_what_only_a_worker_can_notice_is_one_sentence_too(model, text):
    options = ["--documents", "lines", "--separator-id", 999, "--quiet"]
    done = pipeval(*arguments(model, text), *options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "separator_id is 999" in done.stderr


def in_this_process(options: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    before = sys.argv
    sys.argv = ["pipeval", *options]
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"), [("--version", __version__), ("-h", "--sequence-length")]
)
def test_the_version_and_the_help_need_no_model(word, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeval", word])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert said in capsys.readouterr().out


def test_the_result_is_described_by_its_json_schema():
    schema = json.loads(Path("schemas/json/evaluation.schema.json").read_text())
    assert set(LanguageModelEvaluation.model_fields) == set(schema["properties"])


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_help_and_version_start_nothing(option):
    done = subprocess.run(
        [sys.executable, "-m", "runtime", option],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=True,
    )
    if option == "--version":
        assert done.stdout == f"{schedcc.__version__}\n"
    else:
        assert "Examples:\n    pipeval --model smollm2" in done.stdout
        assert "130 interrupted" in " ".join(done.stdout.split())
