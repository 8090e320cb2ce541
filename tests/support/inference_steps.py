"""The inference schedule as DeepSpeed has it: an oracle for what is derived."""

from collections.abc import Iterator

from schemas import (
    ForwardPass,
    LoadMicroBatch,
    RecvActivation,
    SendActivation,
    Step,
    StepInstruction,
)

NUM_BUFFERS = 2


def inference_steps(micro_batches: int, stages: int, stage_id: int) -> Iterator[Step]:
    """Yield the M + S - 1 steps of one stage, lazily and in constant memory.

    Even stages receive into buffer `t % 2` and send from `(t + 1) % 2`, odd stages the other way
    round; both come to keeping micro-batch `m` in buffer `m % 2`.
    """
    even = stage_id % 2 == 0
    first, last = stage_id == 0, stage_id == stages - 1
    for step in range(micro_batches + stages - 1):
        micro_batch = step - stage_id
        receive_buffer = step % 2 if even else (step + 1) % 2
        send_buffer = (step + 1) % 2 if even else step % 2
        active = 0 <= micro_batch < micro_batches
        sending = 0 <= micro_batch - 1 < micro_batches and not last

        load: list[StepInstruction] = []
        send: list[StepInstruction] = []
        receive: list[StepInstruction] = []
        forward: list[StepInstruction] = []
        if active and (first or last):
            load.append(
                LoadMicroBatch(stage=stage_id, micro_batch=micro_batch, buffer=receive_buffer)
            )
        if sending:
            send.append(
                SendActivation(
                    stage=stage_id,
                    micro_batch=micro_batch - 1,
                    buffer=send_buffer,
                    peer=stage_id + 1,
                )
            )
        if active and not first:
            receive.append(
                RecvActivation(
                    stage=stage_id,
                    micro_batch=micro_batch,
                    buffer=receive_buffer,
                    peer=stage_id - 1,
                )
            )
        if active:
            forward.append(
                ForwardPass(stage=stage_id, micro_batch=micro_batch, buffer=receive_buffer)
            )
        transfers = send + receive if even else receive + send
        yield tuple(load + transfers + forward)
