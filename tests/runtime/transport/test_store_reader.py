"""Keys of a store are read in few round trips, however many there are."""

from typing import Any

from torch._C._distributed_c10d import HashStore

from runtime.transport.store_reader import LOOK_SECONDS, StoreReader


class CountedStore:
    """A store of which each question is one round trip."""

    def __init__(self, *present: str) -> None:
        self.asked: list[str] = []
        self._store = HashStore()
        for key in present:
            self.set(key)

    def set(self, key: str) -> None:
        self._store.set(key, f"of {key}")

    def check(self, keys: list[str]) -> bool:
        self.asked.append(f"check {len(keys)}")
        return self._store.check(keys)

    def has_extended_api(self) -> bool:
        return True

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.asked.append(f"get {len(keys)}")
        return [self._store.get(key) for key in keys]


def reader(store: Any) -> StoreReader:
    return StoreReader(store)


def test_keys_that_are_all_there_take_two_round_trips_and_later_one():
    store = CountedStore(*"abcdef")
    reads = reader(store)
    assert reads.read([*"abcdef"]) == {key: b"of " + key.encode() for key in "abcdef"}
    assert store.asked == ["check 6", "get 6"]
    assert len(reads.read([*"abcdef"])) == 6
    assert store.asked[2:] == ["get 6"]


def test_keys_that_are_missing_are_left_out_and_found_when_they_come():
    store = CountedStore("a", "c")
    reads = reader(store)
    assert list(reads.read([*"abc"])) == ["a", "c"]
    store.set("b")
    assert list(reads.read([*"abc"])) == ["a", "b", "c"]
    assert reads.read([]) == {}


def test_on_a_slow_store_a_call_looks_for_some_and_the_next_one_for_others(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("runtime.transport.store_reader.time.monotonic", lambda: now[0])
    store = CountedStore("d")
    check = store.check

    def slow(keys: list[str]) -> bool:
        now[0] += LOOK_SECONDS + 0.01
        return check(keys)

    monkeypatch.setattr(store, "check", slow)
    reads = reader(store)
    calls = [reads.read([*"abcd"]) for _ in range(4)]
    assert store.asked[:4] == ["check 4", "check 1", "check 4", "check 1"], "one in each call"
    assert calls[-1] == {"d": b"of d"}, "it comes to every key in turn"
