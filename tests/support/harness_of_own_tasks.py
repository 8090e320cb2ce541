"""`python -m tests.support.harness_of_own_tasks ARGUMENTS`: the harness with the tasks it is given.

Those that come with it are some thousand files, which take seconds to list.
"""

import runpy
from functools import partialmethod

from lm_eval.tasks import TaskManager


def main() -> None:
    """Run it."""
    listing = partialmethod(TaskManager.__init__, include_defaults=False)
    TaskManager.__init__ = listing  # type: ignore[assignment, method-assign]
    runpy.run_module("runtime.language.harness", run_name="__main__")


if __name__ == "__main__":
    main()
