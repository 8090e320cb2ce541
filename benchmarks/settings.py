"""Settings: what is evaluated, on which stages, and how long a stage and a transfer take."""

from typing import Literal

from pydantic import Field

from schemas.base import Count, Frozen

MIB = 2**20
FLOAT = 4  # bytes


class Setting(Frozen):
    """Equal stages with activations of one size, float32 `[rows, width]`."""

    name: str
    kind: Literal["compute", "devices", "links", "schedules"]
    """Stages that compute; stages that sleep, in processes; those, and links that take time; these
    with several schedules."""
    stages: Count
    micro_batches: Count
    rows: Count
    width: Count
    stage_seconds: float = Field(gt=0)
    """What a forward of a stage takes; of stages that compute: about, on this machine."""
    transfer_seconds: float = Field(default=0.0, ge=0)
    """What a transfer takes on emulated links."""

    @property
    def activation_bytes(self) -> int:
        """Size of an activation in bytes."""
        return self.rows * self.width * FLOAT

    @property
    def title(self) -> str:
        """The setting in one line."""
        size = self.activation_bytes
        shown = f"{size / MIB:g} MiB" if size >= MIB / 8 else f"{size / 1024:g} KiB"
        parts = [
            f"{self.name}: S = {self.stages}, M = {self.micro_batches}",
            f"{self.stage_seconds * 1e3:g} ms a stage",
            f"activations of {shown}",
        ]
        if self.transfer_seconds:
            parts.append(f"{self.transfer_seconds * 1e3:g} ms a transfer")
        return ", ".join(parts)

    def divided(self, held: int) -> "Setting":
        """The same ranks, each with `held` stages that share its time."""
        return self.model_copy(
            update={
                "stages": held * self.stages,
                "stage_seconds": self.stage_seconds / held,
            }
        )

    def smaller(self) -> "Setting":
        """The same in a second or so, to see that it works."""
        return self.model_copy(
            update={
                "micro_batches": 4,
                "rows": min(self.rows, 64),
                "stage_seconds": min(self.stage_seconds, 0.002),
                "transfer_seconds": min(self.transfer_seconds, 0.0018),
            }
        )


SETTINGS = (
    Setting(
        name="compute-heavy",
        kind="compute",
        stages=2,
        micro_batches=64,
        rows=64,
        width=1024,
        stage_seconds=6e-3,
    ),
    Setting(
        name="transfer-heavy",
        kind="compute",
        stages=2,
        micro_batches=64,
        rows=16384,
        width=64,
        stage_seconds=3e-3,
    ),
    Setting(
        name="tiny",
        kind="compute",
        stages=2,
        micro_batches=64,
        rows=8,
        width=64,
        stage_seconds=6e-5,
    ),
    Setting(
        name="devices",
        kind="devices",
        stages=4,
        micro_batches=64,
        rows=2048,
        width=1024,
        stage_seconds=20e-3,
    ),
    Setting(
        name="links",
        kind="links",
        stages=4,
        micro_batches=64,
        rows=16,
        width=64,
        stage_seconds=20e-3,
        transfer_seconds=18e-3,
    ),
    Setting(
        name="schedules",
        kind="schedules",
        stages=4,
        micro_batches=8,
        rows=16,
        width=64,
        stage_seconds=100e-3,
        transfer_seconds=20e-3,
    ),
)
"""All settings of times, by the size of what they show."""
