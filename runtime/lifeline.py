"""A process that works for the one that has started it, and ends with it.

It holds one end of a connection: whatever becomes of the other process, the system closes the other
end. This is watched from the start, while torch is still to be imported, so nothing heavy is
imported here.
"""

import os
import select
import shutil
import threading

LOOK_SECONDS = 0.25
"""Between two looks at whether the parent is the one that started this process."""


def end_with(descriptor: int, directory: str) -> None:
    """End this process as soon as the other end of a connection is closed.

    Args:
        descriptor: Of this process's end.
        directory: Where all processes meet; removed then.
    """
    watched = (descriptor, os.getppid(), directory)
    threading.Thread(target=_watch, args=watched, name="schedcc lifeline", daemon=True).start()


def _watch(descriptor: int, parent: int, directory: str) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
    while not poll.poll(1000 * LOOK_SECONDS) and os.getppid() == parent:
        pass  # a process that was forked off the other may still hold its end
    shutil.rmtree(directory, ignore_errors=True)  # if the other can do so no more
    os._exit(0)
