"""Receives that a plan posts before it is known whether their micro-batch exists.

A plan may post receives far ahead. Whoever waited there for the next window of the stream could
keep those from going on that the window's sender waits for. So such receives are held back, in
their order, until the last micro-batch that is known has arrived, since the window is right behind
it; or until one of them is waited for: what comes before it on its channel was sent behind the
window.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from runtime.data.stream import Stream
from schemas import Instruction, Placed, PostRecvActivation, WaitRecvActivation

Entry = tuple[Placed, int | None, Any]
"""An instruction with its place, its micro-batch, and what executes it."""


class HeldReceives:
    """Those of one rank, in one run."""

    def __init__(self, stream: Stream, execute: Callable[[Any], None]) -> None:
        """Hold none.

        Args:
            stream: Knows which micro-batches there are.
            execute: Posts a receive.
        """
        self._stream, self._execute = stream, execute
        self._entries: deque[Entry] = deque()

    def take(self, entry: Entry) -> bool:
        """Hold a receive back, if it has to be; whether it has."""
        micro_batch = entry[1]
        assert micro_batch is not None
        if not self._entries and self._stream.knows(micro_batch):
            return False
        self._entries.append(entry)
        return True

    def post(self, instruction: Instruction | None = None) -> int:
        """Post those whose micro-batches are known to exist by now; their number.

        Args:
            instruction: Comes next: what it waits for is posted in any case.
        """
        posted = 0
        while self._entries:
            entry = self._entries[0]
            micro_batch = entry[1]
            assert micro_batch is not None
            if not (self._stream.knows(micro_batch) or self._is_waited_for(instruction)):
                break
            self._entries.popleft()
            if self._stream.has(micro_batch):
                self._execute(entry)
                posted += 1
        return posted

    def after(self, instruction: Instruction) -> int:
        """Take the window in that comes behind what was waited for, and post what it allows."""
        if not self._entries or not isinstance(instruction, WaitRecvActivation):
            return 0
        if not self._stream.follows_receive(instruction.stage, instruction.micro_batch):
            return 0
        self._stream.has(self._stream.count)
        return self.post()

    def _is_waited_for(self, instruction: Instruction | None) -> bool:
        """Whether an instruction waits for one of them."""
        if not isinstance(instruction, WaitRecvActivation):
            return False
        expected = (entry[0].instruction for entry in self._entries)
        return any(
            isinstance(post, PostRecvActivation)
            and (post.stage, post.micro_batch) == (instruction.stage, instruction.micro_batch)
            for post in expected
        )
