"""A network switch in a thread: it forwards Ethernet frames between TAP devices, well or badly.

It does what `tc netem` would, on kernels that have no netem too, and in one direction where that is
wanted. The TCP at both ends is the kernel's.
"""

import heapq
import os
import random
import select
import threading
import time
from dataclasses import dataclass

LONGEST_FRAME = 65_536


@dataclass
class Path:
    """What becomes of frames from one host to another."""

    delay: float = 0.0
    """Seconds."""
    loss: float = 0.0
    """The share of frames that is lost; 1: all."""


class Switch:
    """Forwards frames until it is closed; the paths may be changed meanwhile."""

    def __init__(self, ports: dict[bytes, int], seed: int = 0) -> None:
        """Connect TAP devices.

        Args:
            ports: The descriptor of each, by its hardware address; its owner closes it.
            seed: Of the choice of frames that are lost.
        """
        self._ports, self._draw = ports, random.Random(seed).random
        self.paths = {(a, b): Path() for a in ports for b in ports if a != b}
        """By the hardware addresses of source and destination."""
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._wake, self._end = os.pipe()
        self._thread = threading.Thread(target=self._forward, name="switch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; what is under way is lost."""
        os.close(self._end)
        self._thread.join()
        os.close(self._wake)

    def _forward(self) -> None:
        waiting = select.poll()
        sources = {descriptor: address for address, descriptor in self._ports.items()}
        for descriptor in (self._wake, *sources):
            waiting.register(descriptor, select.POLLIN)
        number = 0
        while True:
            ready = [descriptor for descriptor, _ in waiting.poll(self._pause())]
            if self._wake in ready:
                return
            for descriptor in ready:
                frame = os.read(descriptor, LONGEST_FRAME)
                for port, due in self._destinations(sources[descriptor], frame):
                    number += 1
                    heapq.heappush(self._under_way, (due, number, port, frame))
            self._deliver()

    def _pause(self) -> float | None:
        """Milliseconds until the next frame arrives."""
        if not self._under_way:
            return None
        return max(0.0, (self._under_way[0][0] - time.monotonic()) * 1e3)

    def _destinations(self, source: bytes, frame: bytes) -> list[tuple[int, float]]:
        """Where a frame goes, and when it arrives there."""
        to, found = frame[:6], []
        to_all = to[0] & 1  # broadcast and multicast
        for address, port in self._ports.items():
            if address == source or (to != address and not to_all):
                continue
            path = self.paths[source, address]
            if path.loss < 1 and self._draw() >= path.loss:
                found.append((port, time.monotonic() + path.delay))
        return found

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, _, port, frame = heapq.heappop(self._under_way)
            try:
                os.write(port, frame)
            except OSError:  # that device is down, or not there any more
                continue
