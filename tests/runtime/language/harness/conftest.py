"""A tiny model and local tasks, for all tests of the harness."""

import pytest
import torch

from tests.support.harness_tasks import write_tasks
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
