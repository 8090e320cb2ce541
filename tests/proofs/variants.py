"""The families of instructions of each variant, from what a model says about its schedule."""

from schemas import (
    CopyActivation,
    ForwardPass,
    LoadMicroBatch,
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    SendActivation,
    WaitRecvActivation,
    WaitSendActivation,
)
from tests.proofs.model import Behind, Family, Hoisted, Instance, Model
from tests.proofs.terms import Number, where


def blocking(model: Model) -> list[Family]:
    """Step `t` begins at `units * t`: a load or a copy, transfers in their slots, a forward."""
    units = model.units

    def load(s: Number, m: Number) -> Instance:
        return _load_or_copy(model, LoadMicroBatch, s, m)

    def copy(s: Number, m: Number) -> Instance:
        return _load_or_copy(model, CopyActivation, s, m)

    def receive(s: Number, m: Number) -> Instance:
        step, slot = model.step_of(s, m), model.slot(s - 1)
        return model.instance(
            RecvActivation, s, m, exists=model.receives(s), peer=s - 1, step=step,
            key=(step, 2, slot, 0), start=units * step + slot, end=units * step + slot + 1,
        )  # fmt: skip

    def send(s: Number, m: Number) -> Instance:
        step, slot = model.step_of(s, m) + 1, model.slot(s)
        return model.instance(
            SendActivation, s, m, exists=model.sends(s), peer=s + 1, step=step,
            key=(step, 2, slot, 0), start=units * step + slot, end=units * step + slot + 1,
        )  # fmt: skip

    def forward(s: Number, m: Number) -> Instance:
        return _forward(model, s, m)

    return [load, copy, receive, send, forward]


def overlapped_in_order(model: Model) -> list[Family]:
    """Posts ahead, waits behind, transfers in the order and at the times of the blocking variant.

    A post stands right behind the forward of the step `Hoisted.behind`, a wait right before the
    forward that needs its place, or at the end.
    """
    units = model.units

    def load(s: Number, m: Number) -> Instance:
        return _load_or_copy(model, LoadMicroBatch, s, m)

    def copy(s: Number, m: Number) -> Instance:
        return _load_or_copy(model, CopyActivation, s, m)

    def post_receive(s: Number, m: Number) -> Instance:
        count = model.num_buffers
        before = where(m >= count, model.step_of(s, where(m >= count, m - count, m)), -1 + 0 * m)
        return post(PostRecvActivation, s, m, before, model.step_of(s, m), s - 1)

    def post_send(s: Number, m: Number) -> Instance:
        step = model.step_of(s, m)
        return post(PostSendActivation, s, m, step, step + 1, s)

    def post(
        op: type, s: Number, m: Number, held_by: Number, step: Number, source: Number
    ) -> Instance:
        assert model.behind is not None
        slot, receives = model.slot(source), op is PostRecvActivation
        exists = model.receives(s) if receives else model.sends(s)
        behind = model.behind(exists, model.rank(s), held_by, (step, slot))
        return model.instance(
            op, s, m, exists=exists,
            peer=s - 1 if receives else s + 1, step=where(behind < 0, 0 * behind, behind),
            key=(behind, 5, step, slot), start=units * (behind + 1), end=units * step + slot + 1,
            hoisted=Hoisted(held_by, (step, slot), behind),
        )  # fmt: skip

    def wait_receive(s: Number, m: Number) -> Instance:
        step, slot = model.step_of(s, m), model.slot(s - 1)
        return model.instance(
            WaitRecvActivation, s, m, exists=model.receives(s), peer=s - 1, step=step,
            key=(step, 3, 0, 0), start=units * step, end=units * step + slot + 1,
        )  # fmt: skip

    def wait_send(s: Number, m: Number) -> Instance:
        later = m + model.num_buffers
        is_needed = later < model.micro_batches
        step, end = model.step_of(s, m), model.steps
        due = where(is_needed, model.step_of(s, where(is_needed, later, m)), end)
        return model.instance(
            WaitSendActivation, s, m, exists=model.sends(s), peer=s + 1,
            step=where(is_needed, due, end - 1), key=(due, 2, step, 0),
            start=units * due, end=units * due,
        )  # fmt: skip

    def forward(s: Number, m: Number) -> Instance:
        return _forward(model, s, m)

    return [load, copy, wait_send, wait_receive, forward, post_send, post_receive]


def overlapped_on_a_chain(model: Model) -> list[Family]:
    """One stage on each rank: receives are posted two ahead, behind the send of the forward.

    For each `m`: load, wait for send m - 2, wait for receive m, forward m, post send m and
    receive m + 2. Stage `s` forwards `m` at `3 s + 2 m`.
    """
    last = model.steps - 1

    def times(s: Number, m: Number) -> Number:
        return 3 * s + 2 * m

    def load(s: Number, m: Number) -> Instance:
        return model.instance(
            LoadMicroBatch, s, m, exists=model.ends(s), step=model.step_of(s, m),
            key=(m, 0), start=times(s, m), end=times(s, m),
        )  # fmt: skip

    def wait_send(s: Number, m: Number) -> Instance:
        is_needed = m + 2 < model.micro_batches
        waited = where(is_needed, times(s, m) + 4, times(s, m) + 3)
        return model.instance(
            WaitSendActivation, s, m, exists=model.sends(s), peer=s + 1,
            step=where(is_needed, model.step_of(s, where(is_needed, m + 2, m)), last),
            key=(m + 2, 1), start=waited, end=waited,
        )  # fmt: skip

    def wait_receive(s: Number, m: Number) -> Instance:
        return model.instance(
            WaitRecvActivation, s, m, exists=model.receives(s), peer=s - 1,
            step=model.step_of(s, m), key=(m, 2), start=times(s, m), end=times(s, m),
        )  # fmt: skip

    def forward(s: Number, m: Number) -> Instance:
        return model.instance(
            ForwardPass, s, m, exists=True, step=model.step_of(s, m),
            key=(m, 3), start=times(s, m), end=times(s, m) + 1,
        )  # fmt: skip

    def post_send(s: Number, m: Number) -> Instance:
        return model.instance(
            PostSendActivation, s, m, exists=model.sends(s), peer=s + 1,
            step=model.step_of(s, m), key=(m, 4), start=times(s, m) + 1, end=times(s, m) + 3,
        )  # fmt: skip

    def post_receive(s: Number, m: Number) -> Instance:
        early = m < 2
        return model.instance(
            PostRecvActivation, s, m, exists=model.receives(s), peer=s - 1,
            step=where(early, 0 * m, model.step_of(s, where(early, m, m - 2))),
            key=(m - 2, 5), start=where(early, 0 * m, times(s, m) - 3), end=times(s, m),
        )  # fmt: skip

    return [load, wait_send, wait_receive, forward, post_send, post_receive]


def _load_or_copy(model: Model, op: type, s: Number, m: Number) -> Instance:
    step, copies = model.step_of(s, m), op is CopyActivation
    fields = {"peer": s - 1, "peer_buffer": model.buffer_of(m)} if copies else {}
    return model.instance(
        op, s, m, exists=model.copies(s) if copies else model.ends(s), step=step,
        key=(step, int(copies), 0, 0), start=model.units * step, end=model.units * step, **fields,
    )  # fmt: skip


def _forward(model: Model, s: Number, m: Number) -> Instance:
    step = model.step_of(s, m)
    start = model.units * step + model.slots
    return model.instance(
        ForwardPass, s, m, exists=True, step=step, key=(step, 4, 0, 0), start=start, end=start + 1
    )


def hoisted_in(entries: list[tuple[tuple[int, int, int], int]]) -> Behind:
    """How far posts are hoisted in programs that are known.

    Args:
        entries: Of every transfer `(rank, step, slot)` and the step of the forward that holds it.
    """

    def behind(_: bool, rank: int, __: int, queued: tuple[int, int]) -> int:
        ahead = [held for (on, *at), held in entries if on == rank and tuple(at) <= queued]
        return max(ahead, default=-1)

    return behind


def held_entries(model: Model) -> list[tuple[tuple[int, int, int], int]]:
    """The transfers of known programs, and what holds each."""
    return [
        ((i.rank, *i.hoisted.queued), i.hoisted.held_by)
        for family in overlapped_in_order(model)
        for s in range(model.stages)
        for m in range(model.micro_batches)
        for i in [family(s, m)]
        if i.hoisted is not None and i.exists
    ]
