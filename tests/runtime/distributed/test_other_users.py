"""A run on one machine, as other users of the machine see it."""

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.distributed.local_run import DIRECTORY
from runtime.distributed.process_group import process_group
from runtime.distributed.processes import launch
from runtime.failure.report import Failure
from runtime.failure.store import FailureStore
from runtime.transport.private_store import (
    OF_TORCH,
    PrivateStore,
    PrivateStoreError,
    make_directory,
    remove_directory,
    require_private,
)
from runtime.transport.rendezvous import RendezvousStore
from runtime.transport.shared_memory.sockets import Listener, connect
from tests.support.forks import forks, launch_forks
from tests.support.models_for_tests import batches, mlp, one_process
from tests.support.other_users import as_nobody, connected, opened, ports, root_only

PATIENCE = 60.0
SIZES = (2, 3, 1, 2)


@dataclass(frozen=True)
class Scene:
    """A directory where ranks say who they are, and learn when to go on."""

    place: Path

    def tell(self, rank: int) -> None:
        file = self.place / f"{rank} new"
        file.write_text(f"{os.getpid()} {os.environ[DIRECTORY]}")
        file.rename(self.place / str(rank))

    def told(self, rank: int) -> tuple[int, str]:
        wait_for(self.place / str(rank))
        process, directory = (self.place / str(rank)).read_text().split()
        return int(process), directory


def wait_for(file: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} does not come"
        time.sleep(0.01)


def evaluate_in_view(scene: Scene) -> float:
    """The loss of an evaluation that stops in the middle until it has been attacked."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])

    def data() -> Iterator[Any]:
        for number, batch in enumerate(batches(SIZES)):
            if number == 2:
                scene.tell(rank)
                wait_for(scene.place / "attacked")
            yield batch

    with process_group(connected=False):
        evaluator = Evaluator(mlp(), loss_fn=nn.functional.mse_loss, partition="uniform")
        results = [
            evaluator.eval_batch(iter(batches((2,))), num_micro_batches=1),
            evaluator.eval_batch(data(), num_micro_batches=len(SIZES)),
        ]
        return float(results[1].loss)


def publish_failure(directory: str) -> str:
    """What comes of a failure that another user tells the ranks."""
    ranks = RendezvousStore(PrivateStore(directory), 1, ("stage 0", "stage 1"))
    failure = Failure(kind="lost", reporter=1, name="stage 1", at="", reason="\x1b[2J")
    try:
        FailureStore(ranks, 0).publish(failure)
    except (OSError, RuntimeError) as error:
        return type(error).__name__
    return "published"


def sockets_of_runs() -> list[str]:
    """The Unix sockets of all runs whose names the system shows to everybody."""
    names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
    return [name.replace("@", "\0", 1) for name in names if "schedcc-" in name]


@root_only
def test_another_user_reaches_nothing_of_a_run_and_it_ends_as_it_would_have(tmp_path):
    scene, found = Scene(tmp_path), []
    tmp_path.chmod(0o755)
    forks()  # not first in the thread
    run = threading.Thread(target=lambda: found.append(launch_forks(2, evaluate_in_view, scene)))
    run.start()
    try:
        ranks = [scene.told(rank) for rank in range(2)]
        directory = ranks[0][1]
        assert [ports(process) for process, _ in ranks] == [[], []]
        assert ports(os.getpid()) == []
        proc = [Path(f"/proc/{process}") for process, _ in ranks]
        files = [f"{p}/{name}" for p in proc for name in ("fd", "mem", "environ", "map_files")]
        files += [str(d) for p in proc for d in sorted((p / "fd").iterdir(), key=str)[:40]]
        files += [directory, *(str(file) for file in Path(directory).iterdir())]
        assert len(files) > 20
        assert as_nobody(opened, files) == []
        assert as_nobody(publish_failure, directory) in ("PermissionError", "PrivateStoreError")
        as_nobody(connected, sockets_of_runs())
    finally:
        (tmp_path / "attacked").touch()
        run.join(PATIENCE)
    losses = one_process(mlp(), batches(SIZES))[1]
    weighted = sum(n * loss for n, loss in zip(SIZES, losses, strict=True)) / sum(SIZES)
    assert found == [pytest.approx(weighted)]
    assert not Path(directory).exists()


def launch_in_view(scene: Scene) -> None:
    launch(2, evaluate_in_view, scene, start_method="fork")


def test_a_launcher_that_is_killed_leaves_no_directory_behind(tmp_path):
    scene = Scene(tmp_path)
    launcher = forks().Process(target=launch_in_view, args=(scene,))
    launcher.start()
    directories = {scene.told(rank)[1] for rank in range(2)}
    assert len(directories) == 1
    launcher.kill()
    launcher.join(PATIENCE)
    end = time.monotonic() + PATIENCE
    while Path(*directories).exists():
        assert time.monotonic() < end, "the directory stays"
        time.sleep(0.01)


@root_only
def test_another_user_who_connects_first_is_not_taken_for_the_other_end():
    with Listener() as listener:  # in the abstract namespace, where everybody can connect
        answers: list[Any] = []

        def attack() -> None:
            answers.append(as_nobody(connected, [f"\0{listener.name}"] * 3))
            answers.append(connect(listener.name))

        attacker = threading.Thread(target=attack)
        attacker.start()
        attacker.join(PATIENCE)
        accepted = listener.accept()
        assert answers[0] == 3
        accepted.send(b"for this user")
        assert isinstance(answers[1], socket.socket)
        assert answers[1].recv(100) == b"for this user"
        accepted.close()
        answers[1].close()


@pytest.fixture
def directory():
    made = make_directory()
    yield made
    remove_directory(made)


def test_the_directory_of_a_run_is_that_of_its_user_alone(directory):
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    require_private(directory)
    (directory / OF_TORCH).touch()
    for mode in (0o750, 0o701, 0o722):
        directory.chmod(mode)
        with pytest.raises(PrivateStoreError, match="needed a directory of user"):
            require_private(directory)


def test_a_link_to_a_private_directory_is_refused(directory, tmp_path):
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(PrivateStoreError, match="needed a directory of user"):
        require_private(tmp_path / "link")
    with pytest.raises(PrivateStoreError, match="No such file or directory"):
        require_private(tmp_path / "none")


@root_only
def test_the_directory_of_another_user_is_refused(directory):
    os.chown(directory, 65534, 65534)
    with pytest.raises(PrivateStoreError, match="is of user 65534 with mode 700"):
        require_private(directory)


def test_a_private_store_does_what_a_store_of_torch_does(directory):
    store = PrivateStore(str(directory))
    part = store.part("a").part("b/c")
    part.set("key", "1")
    part.set("key", b"2")
    assert (part.get("key"), part.multi_get(["key"])) == (b"2", [b"2"])
    assert part.check(["key"])
    assert not part.check(["key", "other"])
    assert not store.check(["key"])
    assert store.part("a/b/c").get("key") == b"2"
    assert [part.add("number", n) for n in (1, 5, 0)] == [1, 6, 6]
    assert part.compare_set("first", "", "mine") == b"mine"
    assert part.compare_set("first", "", "yours") == b"mine"
    assert part.compare_set("first", "mine", "yours") == b"yours"
    assert (part.delete_key("key"), part.delete_key("key")) == (True, False)


def test_threads_that_count_in_a_private_store_lose_nothing(directory):
    def count() -> None:
        for _ in range(50):
            PrivateStore(str(directory)).add("number", 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert PrivateStore(str(directory)).get("number") == b"200"


def test_a_store_whose_directory_is_gone_says_so(directory):
    store = PrivateStore(str(directory))
    remove_directory(directory)
    calls: list[Callable[[], object]] = [
        lambda: store.get("key"),
        lambda: store.check(["key"]),
        lambda: store.set("key", ""),
        lambda: store.add("key", 1),
        lambda: store.compare_set("key", "", ""),
    ]
    for call in calls:
        with pytest.raises(PrivateStoreError, match="is gone: the run was ended"):
            call()
    RendezvousStore(store, 0, ("stage 0",)).leave("evaluator", "was closed")
