"""Results of finished micro-batches on disk, so that a run that was ended can go on.

One file, which only grows: a header that says what is evaluated, and a line for each micro-batch,
in order, with a checksum. Whoever is killed while writing leaves a line without an end, which is
taken away; so a micro-batch is in the file as a whole, or not at all.
"""

import base64
import fcntl
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import torch

from runtime.language.models import ModelFiles
from runtime.language.models.files.directory import weight_entry, weight_map
from runtime.language.models.files.names import BY_LAYERS, CONFIG, TENSOR_FILES
from runtime.language.models.split.scores import LOGITS_AT_ONCE
from runtime.language.perplexity.job import RESULTS, Job
from runtime.language.text import Windows
from schedcc.io.plain_text import SentenceError, visible
from schemas import MicroBatchLosses, ResultsHeader

MOST_OF_HEADER, MOST_BESIDE = 2**16, 2**8
"""Bytes of the header, and of a result beside its losses."""
_BEGINNING = ResultsHeader(job={}, micro_batches=1).model_dump_json().partition("}")[0].encode()
"""What every header begins with."""
_SAMPLE, _SAMPLES = 4096, 64
"""Bytes, and places in a file of weights that are looked at."""


class ResumeError(SentenceError):
    """A directory of results that this run cannot go on from; the message is one sentence."""


class ResultsEndError(ResumeError):
    """A result cannot be written, in the midst of a run; another run goes on from those before."""


def fingerprint(job: Job, files: ModelFiles, windows: Windows) -> dict[str, str]:
    """What decides the losses, by name: nothing of it may change between two parts of a run.

    Stages, threads, transfers and where files lie may.
    """
    documents = windows.documents
    text = sha256()
    for tensor in (documents.tokens, documents.starts):
        text.update(tensor.numpy().tobytes())
    return {
        "model": digest_of_model(files.directory),
        "text": text.hexdigest(),
        "dtype": job.dtype,
        "documents": f"{documents.mode}, separator {documents.separator}, bos {documents.bos}",
        "sequence_length": str(job.sequence_length),
        "micro_batch_size": str(job.micro_batch_size),
        "stride": str(job.stride),
        "max_windows": str(job.max_windows),
        "logits_at_once": str(LOGITS_AT_ONCE),  # rows of a product decide its last bits
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
    }


def digest_of_model(directory: Path) -> str:
    """Names and sizes of the files that make a model, and samples of their content.

    The tokenizer is none of them, since what counts is the tokens; nor is what lies beside them.
    """
    found = sha256()
    for path in sorted(filter(Path.is_file, _files_of_model(directory))):
        size = path.stat().st_size
        found.update(os.fsencode(path.relative_to(directory)) + f" {size} ".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES if size > _SAMPLE * _SAMPLES else 1):
                file.seek(sample * max(0, size - _SAMPLE) // (_SAMPLES - 1))
                found.update(file.read(_SAMPLE if size > _SAMPLE * _SAMPLES else size))
    return found.hexdigest()


def _files_of_model(directory: Path) -> Iterator[Path]:
    """The configuration and the weights, in either format."""
    yield directory / CONFIG
    entry = weight_entry(directory)
    if entry is not None:
        yield entry
        shards = set(weight_map(entry).values()) if entry.suffix == ".json" else ()
        yield from (directory / shard for shard in shards)
        return
    yield from (directory / name for name in BY_LAYERS)
    yield from (path for path in directory.rglob("*") if path.suffix in TENSOR_FILES)


class ResultLog:
    """The results of one run, in a directory of their own."""

    def __init__(self, directory: Path, job: Mapping[str, str], targets: Sequence[int]) -> None:
        """Open the directory, or make it.

        Args:
            directory: Of no other run at the same time.
            job: The `fingerprint` of this run.
            targets: Of each micro-batch.

        Raises:
            ResumeError: the results are damaged, of another job, or in use; or cannot be written.
        """
        self._path, name = directory / RESULTS, visible(str(directory))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ResumeError(
                f"results cannot be written to {name}: {error.strerror or error}"
            ) from error
        self._count, self._ended = 0, False
        self.finished: list[torch.Tensor]
        """The losses of the micro-batches that are there, in order, float32 `[targets]` each."""
        try:
            self._lock(name)
            self.finished = self._read(dict(job), targets)
        except OSError as error:
            self.close()
            shown = visible(self._path)
            raise ResumeError(f"{shown} cannot be used: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def append(self, losses: torch.Tensor) -> None:
        """Write the losses of the next micro-batch, float32 `[targets]`.

        One that is not finite ends the results: it would end the run that goes on from here, too.

        Raises:
            ResultsEndError: it cannot be written.
        """
        if self._ended or not bool(losses.isfinite().all()):
            self._ended = True
            return
        text = base64.b64encode(losses.numpy().astype("<f4").tobytes()).decode()
        number, self._count = self._count, self._count + 1
        line = MicroBatchLosses(micro_batch=number, losses=text, crc32=checksum(number, text))
        try:
            self._write(line.model_dump_json())
        except OSError as error:  # what is there stays: a run goes on from its last whole line
            shown = visible(self._path)
            raise ResultsEndError(
                f"{shown} cannot be written: {error.strerror or error}"
            ) from error

    def close(self) -> None:
        """Let others go on from here."""
        os.close(self._file)

    def _lock(self, name: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResumeError(f"{name} is in use by another run") from error
        except OSError as error:
            raise ResumeError(
                f"{name} cannot be locked against other runs: {error.strerror or error}"
            ) from error

    def _write(self, line: str) -> None:
        content = memoryview(f"{line}\n".encode())
        while content:
            content = content[os.write(self._file, content) :]

    def _read(self, job: dict[str, str], targets: Sequence[int]) -> list[torch.Tensor]:
        """What the file holds; what breaks off at its end is taken away if all else is good."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise ResumeError(f"{visible(str(self._path))} is no regular file, needed one")
        with self._path.open("rb") as file:
            header = file.readline(MOST_OF_HEADER)
            if not header.endswith(b"\n"):
                self._require_torn(header)
                os.ftruncate(self._file, 0)
                self._write(ResultsHeader(job=job, micro_batches=len(targets)).model_dump_json())
                return []
            self._require_same(header, job)
            finished, whole = self._results(file, len(header), targets)
        os.ftruncate(self._file, whole)
        self._count = len(finished)
        return finished

    def _results(
        self, file: BinaryIO, whole: int, targets: Sequence[int]
    ) -> tuple[list[torch.Tensor], int]:
        """The results behind the header, and where the last whole one ends."""
        finished: list[torch.Tensor] = []
        for number, count in enumerate((*targets, 0)):
            line = file.readline(longest := MOST_BESIDE + 4 * -(-4 * count // 3))
            if not line.endswith(b"\n") and len(line) < longest:
                break
            finished.append(self._losses(line, number, targets))
            whole += len(line)
        return finished, whole

    def _require_torn(self, header: bytes) -> None:
        """Refuse the file of somebody else, which is not to be lost."""
        begun = len(header) < MOST_OF_HEADER and _BEGINNING.startswith(header[: len(_BEGINNING)])
        if not begun:
            raise self._no_results()

    def _no_results(self) -> ResumeError:
        return ResumeError(f"{visible(str(self._path))} holds no results of a run")

    def _require_same(self, header: bytes, job: dict[str, str]) -> None:
        try:
            before = ResultsHeader.model_validate_json(header).job
        except ValueError as error:
            raise self._no_results() from error
        for key in sorted(before.keys() | job.keys()):
            if before.get(key) != job.get(key):
                values = "" if len(job.get(key, "")) == 64 else f": {before.get(key)} there"
                values += f", {job.get(key)} here" if values else ""
                raise ResumeError(
                    f"{visible(str(self._path))} holds results of another run, whose {key} "
                    f"differs{values}"
                )

    def _losses(self, line: bytes, number: int, targets: Sequence[int]) -> torch.Tensor:
        try:
            found = MicroBatchLosses.model_validate_json(line)
            content = base64.b64decode(found.losses, validate=True)
            good = found.crc32 == checksum(number, found.losses) and found.micro_batch == number
            good = good and number < len(targets) and len(content) == 4 * targets[number]
        except ValueError:
            good = False
        if not good:
            raise ResumeError(
                f"{visible(str(self._path))} is damaged in line {number + 2}: it is not the result "
                f"of micro-batch {number}"
            )
        return torch.frombuffer(bytearray(content), dtype=torch.float32)


def checksum(micro_batch: int, losses: str) -> int:
    """What is kept with the losses of a micro-batch, in base64."""
    return zlib.crc32(f"{micro_batch} {losses}".encode())
