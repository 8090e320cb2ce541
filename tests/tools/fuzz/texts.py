"""Texts of a corpus, in all formats: read and tokenized, or refused."""

import gzip
import io
import json
from functools import partial
from pathlib import Path
from random import Random

import pyarrow
import zstandard
from pyarrow import parquet

from runtime.language.text import TextError, read_texts, tokenize_documents
from tests.support.tiny_models import tiny_tokenizer
from tests.tools.fuzz.edits import Seed, edited_bytes, edited_lines
from tests.tools.fuzz.kinds import Kind, refused

LINES = ("The year 2024, or 1,234.5:  it's", "naïve café 漢字 \U0001f389", "", "def f(x): return x")
MESSAGES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
KEYS = ("text", "body", "x")


def plain_texts(folder: Path) -> Kind:
    """Plain texts of some lines, with line ends of all kinds."""
    ends = ("\n", "\r\n", "\r")
    seeds = [Seed(".txt", end.join(LINES).encode()) for end in ends]
    seeds.append(Seed(".md", b"\xef\xbb\xbf" + "\n".join(LINES).encode()))
    return Kind(seeds, edited_bytes, _reader(folder))


def json_lines(folder: Path) -> Kind:
    """Records with texts, and with conversations."""
    texts = [{"text": line or " ", "body": "other", "number": 1} for line in LINES]
    conversations = [{"text": MESSAGES}, {"text": "a text among them"}]
    seeds = [Seed(".jsonl", _lines(records)) for records in (texts, conversations)]
    seeds.append(Seed(".ndjson", b"\n" + _lines(texts[:1]).strip()))
    edit = partial(edited_lines, keys=KEYS)
    return Kind(seeds, edit, _reader(folder, conversations=True))


def compressed_texts(folder: Path) -> Kind:
    """gzip and zstd, of one part and of several; what is inside is edited, or what is outside."""
    inside = "\n".join(LINES).encode()
    frames = zstandard.ZstdCompressor(write_checksum=True)
    pieces = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    seeds = [
        Seed(".txt.gz", gzip.compress(inside, mtime=0)),
        Seed(".md.gz", gzip.compress(inside, mtime=0) + gzip.compress(b"more", mtime=0)),
        Seed(".txt.zst", frames.compress(inside)),
        Seed(".text.zst", frames.compress(inside) + frames.compress(b"more")),
        Seed(".rst.zst", pieces.compress(b"a" * 100_000) + pieces.flush()),
    ]
    return Kind(seeds, edited_bytes, _reader(folder))


def parquet_files(folder: Path) -> Kind:
    """Columns of texts, of several encodings and compressions, and conversations."""
    texts: dict[str, list[object]] = {"text": [*LINES], "number": [*range(len(LINES))]}
    settings: list[dict[str, object]] = [
        {"compression": "snappy"},
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "none", "data_page_version": "2.0", "row_group_size": 2},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    ]
    seeds = [Seed(".parquet", _parquet(texts, **s)) for s in settings]
    seeds.append(Seed(".parquet", _parquet({"text": [MESSAGES, MESSAGES[:1]]})))
    return Kind(seeds, edited_bytes, _reader(folder, conversations=True))


def _lines(records: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _parquet(columns: dict[str, list[object]], **settings: object) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, **settings)
    return file.getvalue()


def _reader(folder: Path, *, conversations: bool = False) -> object:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )

    def read(seed: Seed, content: bytes, random: Random) -> str:
        file = folder / f"text{seed.suffix}"
        file.write_bytes(content)
        field = random.choice((None, None, "text", "body"))
        mode = random.choice(("whole", "texts", "lines", "packed"))
        try:
            texts = read_texts([file], field, conversations=conversations)
            tokenize_documents(tokenizer, texts, documents=mode)
        except TextError as error:
            return refused(error)
        return "read"

    return read
