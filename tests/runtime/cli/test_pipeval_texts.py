"""What `pipeval` reads, and what it evaluates of it, against one process that does it plainly."""

import math
import os
import socket
import subprocess
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from runtime import Evaluator
from runtime.language.models import split_causal_lm
from runtime.language.perplexity.reference import count_tokens, next_token_loss, reference
from runtime.language.text import IGNORED, Text, Windows, tokenize_documents
from runtime.testing import InMemoryTransport, run_threads
from schemas import LanguageModelEvaluation
from tests.support.forks import Program, pipeval, run_pipeval
from tests.support.tiny_models import saved_llama, tiny_model, tiny_tokenizer

FIRST = "ab ab 12 cd\n\nthe quick brown fox\njumps over the lazy dog, 1234 times\n"
SECOND = "a\r\nsecond text, with a line of its own that is longer than one window has room for\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llama(tmp_path_factory.mktemp("tiny-llama"))


def run(*options: object, **settings: Any) -> "subprocess.CompletedProcess[str]":
    sizes = ["--sequence-length", 16, "--micro-batch-size", 3, "--threads", 1, "--quiet"]
    return pipeval(*sizes, *options, **settings)


def evaluation(done: "subprocess.CompletedProcess[str]") -> LanguageModelEvaluation:
    assert done.returncode == 0, done.stderr
    return LanguageModelEvaluation.model_validate_json(done.stdout)


@cache
def plain_model() -> torch.nn.Module:
    return tiny_model("llama")


def surprise(document: list[int], context: list[int]) -> list[float]:
    """Nats of each token of a document, from at most 15 tokens before it."""
    ids = torch.tensor([[*context, *document]])
    with torch.no_grad():
        logits = plain_model()(input_ids=ids[:, :-1]).logits[0]
    logits = logits[len(context) - 1 :].double()
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor(document), reduction="none"
    ).tolist()


def lines_alone(*texts: str) -> list[float]:
    """Nats of each token of each line that is not blank, in windows of 15 inputs."""
    tokenizer = tiny_tokenizer()
    found = []
    for line in (line for text in texts for line in text.splitlines() if line.strip()):
        row = [tokenizer.bos_token_id, *tokenizer(line, add_special_tokens=False)["input_ids"]]
        for done in range(1, len(row), 15):
            end = min(done + 15, len(row))
            start = max(0, end - 16) if done > 1 else 0
            found += surprise(row[done:end], row[start:done])
    return found


def test_lines_of_all_texts_count_alone_and_a_pipe_is_one_of_the_texts(model, tmp_path):
    file, pipe = tmp_path / "first.txt", tmp_path / "pipe"
    file.write_text(FIRST)
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_bytes, args=(SECOND.encode(),), daemon=True)
    writer.start()
    options = ["--documents", "lines", "--stages", 2, "--verify", "--json"]
    found = evaluation(run("--model", model, "--text", file, "--text", pipe, *options))
    expected = lines_alone(FIRST, SECOND)
    assert found.tokens == len(expected)
    assert found.loss == pytest.approx(math.fsum(expected) / len(expected), rel=1e-6)
    assert found.verification is not None
    assert found.verification.passed
    assert found.text == f"{file}, {pipe}"
    assert found.documents == "lines"
    writer.join(10)
    assert not writer.is_alive()


def test_the_ranks_of_a_launcher_read_standard_input_once(model):
    """Tasks of Slurm that know where to meet: one run, whose first rank reads."""
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in (1, 0):
        task = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        options = ["--sequence-length", 16, "--threads", 1, "--documents", "packed"]
        options += ["--model", model, "--text", "-", "--json", "--quiet"]
        stdin = FIRST if rank == 0 else ""
        processes.append(Program(run_pipeval, options, stdin=stdin, environment=environment | task))
    other, first = (process.ended() for process in processes)
    found = evaluation(first)
    assert (other.stdout, other.stderr, other.returncode) == ("", "", 0)
    assert (found.text, found.stages) == ("standard input", 2)
    expected = packed(FIRST)
    assert found.tokens == len(expected)
    assert found.loss == pytest.approx(math.fsum(expected) / len(expected), rel=1e-6)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def packed(text: str) -> list[float]:
    """Nats of each token of the lines in consecutive windows of 16, separators left out."""
    tokenizer = tiny_tokenizer()
    row, separators = [], set()
    for line in (line for line in text.splitlines() if line.strip()):
        separators.add(len(row))
        row += [tokenizer.bos_token_id, *tokenizer(line, add_special_tokens=False)["input_ids"]]
    found = []
    for start in range(0, len(row), 16):
        window = row[start : start + 16]
        if len(window) > 1:
            nats = surprise(window[1:], window[:1])
            found += [x for at, x in enumerate(nats, start + 1) if at not in separators]
    return found


def test_two_tasks_of_slurm_that_cannot_meet_are_one_sentence_each(model):
    for rank in range(2):
        task = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(rank)}
        done = run("--model", model, "--text", "-", stdin=FIRST, environment=task)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("pipeval: Slurm started 2 processes (SLURM_NTASKS)")
        assert done.stderr.count("\n") == 1


def test_a_loss_that_is_none_is_a_failure_in_one_sentence(tmp_path):
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.model.embed_tokens.weight[5:] = math.nan
    broken.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    done = run("--model", tmp_path / "model", "--text", "-", "--json", stdin=FIRST)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pipeval: the loss is nan: that of micro-batch 0 is nan")
    assert done.stderr.count("\n") == 1


def test_a_perplexity_beyond_all_numbers_is_left_out_and_the_loss_is_not(tmp_path):
    wild = tiny_model("llama")
    with torch.no_grad():
        wild.lm_head.weight.mul_(1e5)
    wild.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    options = ["--model", tmp_path / "model", "--text", "-", "--stages", 1, "--verify"]
    found = evaluation(run(*options, "--json", stdin=FIRST))
    assert found.loss > 710
    assert found.perplexity is None
    assert found.verification is not None
    assert found.verification.passed


def test_labels_that_are_ignored_count_neither_in_the_loss_nor_in_its_weight():
    logits = torch.randn(2, 3, 7)
    labels = torch.tensor([[1, IGNORED, 2], [IGNORED, IGNORED, 6]])
    own = [logits[0, 0], logits[0, 2], logits[1, 2]]
    expected = [-row.log_softmax(0)[label] for row, label in zip(own, (1, 2, 6), strict=True)]
    assert count_tokens(labels) == 3
    assert next_token_loss(logits, labels).item() == pytest.approx(float(sum(expected)) / 3)


@pytest.mark.parametrize("mode", ["whole", "lines", "packed"])
@pytest.mark.parametrize("overlap", [True, False])
def test_documents_have_the_loss_of_one_process_over_any_number_of_stages(mode, overlap):
    texts = [Text("first", FIRST), Text("second", SECOND)]
    documents = tokenize_documents(tiny_tokenizer(), texts, documents=mode)
    windows = Windows(documents, 7, 3)
    model = tiny_model("llama")
    expected = reference(model, windows, next_token_loss, count_tokens)

    def stage(end: InMemoryTransport) -> float:
        evaluator = Evaluator(
            split_causal_lm(model),
            loss_fn=next_token_loss,
            weight_fn=count_tokens,
            transport=end,
            overlap=overlap,
        )
        return evaluator.evaluate(windows).loss

    for stages in (1, 2, 3):
        assert run_threads(stages, stage) == [expected.loss] * stages
