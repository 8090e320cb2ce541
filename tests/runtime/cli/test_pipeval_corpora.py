"""`pipeval` on corpora, with scores by document and token, and runs that are ended and go on."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runtime.language.text import Text, Windows, tokenize_documents
from schemas import DocumentScore, LanguageModelEvaluation, TokenScore
from tests.support.forks import pipeval
from tests.support.tiny_models import saved_llama, tiny_model, tiny_tokenizer

RECORDS = ["ab ab 12 cd", "the quick brown fox jumps over the lazy dog", "naïve 漢字"]
PATIENCE = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llama(tmp_path_factory.mktemp("tiny-llama"))


def words(*options: object) -> list[str]:
    return [*map(str, ["--threads", 1, "--json", *options])]


def run(*options: object) -> "subprocess.CompletedProcess[str]":
    return pipeval(*words(*options))


def plain_losses(texts: list[str], length: int, stride: int) -> dict[int, list[float]]:
    """Nats of each token of each text after a separator, from the model called on one window."""
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    found: dict[int, list[float]] = {}
    for number, text in enumerate(texts):
        row = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        found[number], seen = [], 1
        for start in range(0, len(row), stride):
            stop = min(start + length, len(row))
            ids = torch.tensor([row[start:stop]])
            with torch.no_grad():
                log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            found[number] += [
                -float(log_probs[at - start - 1, row[at]]) for at in range(seen, stop)
            ]
            seen = stop
            if stop == len(row):
                break
    return found


def test_records_are_scored_by_document_token_word_and_byte(model, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text(
        "".join(json.dumps({"body": record}) + "\n" for record in RECORDS)
    )
    outputs = ["--per-document", tmp_path / "d.jsonl", "--per-token", tmp_path / "t.jsonl"]
    sizes = ["--sequence-length", 16, "--stride", 6, "--micro-batch-size", 2, "--stages", 2]
    texts = ["--model", model, "--text", corpus, "--field", "body", "--documents", "texts"]
    done = run(*texts, *sizes, *outputs, "--partition", "0,1,5")
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == "pipeval: starting 2 processes, one for each stage"
    assert {"pipeval: reading and tokenizing the text", "pipeval: loading the model"} < set(said)
    assert re.fullmatch(r"pipeval: evaluating \d+ windows in \d+ micro-batches", said[-1])
    found = LanguageModelEvaluation.model_validate_json(done.stdout)
    expected = plain_losses(RECORDS, 16, 6)
    nats = [loss for losses in expected.values() for loss in losses]
    total = math.fsum(nats)
    assert (found.tokens, found.document_count) == (len(nats), 3)
    assert found.loss == pytest.approx(total / len(nats), rel=1e-6)
    assert found.words == sum(len(record.split()) for record in RECORDS)
    assert found.bytes == sum(len(record.encode()) for record in RECORDS)
    assert found.word_perplexity == pytest.approx(math.exp(total / found.words), rel=1e-4)
    assert found.byte_perplexity == pytest.approx(math.exp(total / found.bytes), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(total / found.bytes / math.log(2), rel=1e-6)
    assert found.targets == "every token of every document, and no separator"
    assert [stage.layers for stage in found.stage_summaries] == [1, 4]
    documents = [*map(DocumentScore.model_validate_json, lines(tmp_path / "d.jsonl"))]
    assert [score.name for score in documents] == [f"{corpus}/a.jsonl:{n}" for n in (1, 2, 3)]
    assert [score.loss for score in documents] == pytest.approx(
        [math.fsum(losses) / len(losses) for losses in expected.values()], rel=1e-5
    )
    tokens = [*map(TokenScore.model_validate_json, lines(tmp_path / "t.jsonl"))]
    assert [token.loss for token in tokens] == pytest.approx(nats, rel=1e-4)
    assert [(token.document, token.position) for token in tokens] == [
        (number, at) for number, losses in expected.items() for at in range(len(losses))
    ]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_counts_every_window_once(model, tmp_path):
    text, results = tmp_path / "text.txt", tmp_path / "results"
    text.write_text("the quick brown fox jumps over the lazy dog, 1234 times\n" * 250)
    options = ["--model", model, "--text", text, "--sequence-length", 33]
    options += ["--resume", results, "--micro-batch-size", 2, "--quiet"]
    command = [sys.executable, "-m", "runtime", *words(*options, "--stages", 2)]
    with subprocess.Popen(command, start_new_session=True) as process:
        deadline = time.monotonic() + PATIENCE
        while finished(results) < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    before = finished(results)
    done = run(*options, "--stages", 3)
    assert done.returncode == 0, done.stderr
    found = LanguageModelEvaluation.model_validate_json(done.stdout)
    documents = tokenize_documents(tiny_tokenizer(), [Text("t", text.read_text())])
    windows = Windows(documents, 33, 2)
    assert before <= found.resumed_micro_batches <= before + 1 < len(windows)
    assert found.micro_batches == len(windows) == finished(results)
    assert found.tokens == windows.tokens
    assert found.loss == pytest.approx(plain_loss(Windows(documents, 33, 64)), rel=1e-6)

    again = run(*options, "--stages", 1)
    assert again.returncode == 0, again.stderr
    once_more = LanguageModelEvaluation.model_validate_json(again.stdout)
    assert once_more.resumed_micro_batches == len(windows)
    assert once_more.loss == found.loss
    other = run(*options, "--max-windows", 3)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "holds results of another run, whose max_windows differs: None there" in other.stderr


def finished(results: Path) -> int:
    file = results / "results.jsonl"
    return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0


def plain_loss(windows: Windows) -> float:
    model, nats = tiny_model("llama"), []
    with torch.no_grad():
        for inputs, labels in windows:
            logits = model(input_ids=inputs).logits.double()
            nats += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none"
            ).tolist()
    return math.fsum(nats) / len(nats)
