"""A first plan: compiled, looked at, checked, and timed before anything runs.

Run it:  python examples/first_plan.py

It prints what stage 1 does at step 2, the verdict of the checks, and how long 64 micro-batches take
over 4 stages if a transfer takes a quarter of a forward: blocking, and with transfers that cross
the forwards.
"""

import schedcc


def main() -> None:
    """Compile, check and simulate."""
    plan = schedcc.compile_pipeline(micro_batches=4, stages=3)
    print("stage 1, step 2:", *plan.stage(1).steps[2])
    print("sound:", schedcc.check(plan).ok)

    costs = schedcc.Costs(forward=1.0, transfer=0.25)  # seconds
    for overlap in (False, True):
        plan = schedcc.compile_pipeline(64, 4, overlap=overlap)
        seconds = schedcc.simulate(plan, costs).makespan
        print("overlapped:" if overlap else "blocking:  ", seconds, "s")


if __name__ == "__main__":
    main()
