"""Results that `pipeval --resume` goes on from: taken as they were written, or left as they are."""

import base64
import json
from functools import partial
from pathlib import Path
from random import Random

import torch

from runtime.language.perplexity.job import RESULTS
from runtime.language.perplexity.resume import ResultLog, ResumeError, checksum
from tests.tools.fuzz.edits import Seed, edited_lines
from tests.tools.fuzz.kinds import Kind, refused

JOB = {"dtype": "float32", "text": "a" * 64, "stride": "None"}
TARGETS = (3, 2, 4)
KEYS = ("micro_batch", "losses", "crc32", "format", "job", "micro_batches")


def results(folder: Path) -> Kind:
    """Results of a run that is over, of one that is not, and of one that has just begun."""
    seeds = [Seed(".jsonl", _written(folder / str(count), count)) for count in (0, 2, 3)]
    return Kind(seeds, _edited, partial(_read, folder / "results"))


def _written(directory: Path, count: int) -> bytes:
    log = ResultLog(directory, JOB, TARGETS)
    for number in range(count):
        log.append(torch.arange(TARGETS[number]) + number + 0.1)
    log.close()
    return (directory / RESULTS).read_bytes()


def _edited(content: bytes, random: Random, others: list[Seed]) -> bytes:
    if random.random() < 0.3:  # with a checksum that is right, whatever it is of
        number, size = random.choice((0, 1, 2, 3, 10**30)), random.choice((0, 1, 8, 12, 16, 4000))
        losses = base64.b64encode(random.randbytes(size)).decode()
        losses = random.choice((losses, losses, f" {losses}", "=", "é"))
        line = {"micro_batch": number, "losses": losses, "crc32": checksum(number, losses)}
        content += json.dumps(line).encode() + b"\n"
    return edited_lines(content, random, others, KEYS)


def _read(directory: Path, _: Seed, content: bytes, __: Random) -> str:
    directory.mkdir(exist_ok=True)
    file = directory / RESULTS
    file.write_bytes(content)
    try:
        log = ResultLog(directory, JOB, TARGETS)
    except ResumeError as error:
        assert file.read_bytes() == content, "a file that was refused is not as it was"
        return refused(error)
    log.close()
    there = file.read_bytes()
    whole = there == content[: len(there)] and content.count(b"\n", len(there)) == 0
    assert whole or not log.finished, "what is there is not what was there"
    assert [len(losses) for losses in log.finished] == [*TARGETS[: len(log.finished)]]
    return f"{len(log.finished)} read"
