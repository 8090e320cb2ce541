"""A broken plan: two receives are swapped, which would hang nothing and swap two micro-batches.

Run it:  python examples/broken_plan.py

It prints the findings of the checks: which transfer meets which, and where.
"""

import schedcc


def swapped() -> schedcc.PipelinePlan:
    """A plan over two stages, where stage 1 receives micro-batch 1 before micro-batch 0."""
    plan = schedcc.compile_pipeline(micro_batches=2, stages=2)
    data = plan.model_dump()
    first, second = (
        instruction
        for step in data["programs"][1]["steps"]
        for instruction in step
        if instruction["op"] == "RecvActivation"
    )
    for key in ("micro_batch", "buffer"):
        first[key], second[key] = second[key], first[key]
    return schedcc.PipelinePlan.model_validate(data)


def main() -> None:
    """Check it."""
    report = schedcc.check(swapped())
    print("sound:", report.ok)
    for finding in report.findings:
        print(finding)


if __name__ == "__main__":
    main()
