"""Row 7: a layer whose forward is captured into a CUDA graph, one for each of two buffers."""

import torch
from torch import nn

from benchmarks.gpu.context import Context
from benchmarks.gpu.report import Found
from benchmarks.gpu.workload import WIDTH, data, layers

LAYERS = 16
TIMES = 100


def graphs(context: Context) -> Found:
    """The bits of a replay are those of the layer; and what replaying saves."""
    machine = context.machine
    device = machine.device
    width = context.size(WIDTH, 16)
    layer = nn.Sequential(*layers(LAYERS, width)).to(device).eval()
    pairs = [inputs.to(device) for inputs, _ in data(context.size(16, 4), width=width)]
    with torch.no_grad():
        expected = [layer(inputs) for inputs in pairs]
        places = [torch.empty_like(pairs[0]) for _ in range(2)]
        outputs = [torch.empty_like(expected[0]) for _ in range(2)]

        def forward(buffer: int) -> None:
            outputs[buffer].copy_(layer(places[buffer]))

        captured = [machine.capture(lambda b=b: forward(b)) for b in range(2)]  # type: ignore[misc]
        wrong = []
        for m, inputs in enumerate(pairs):
            places[m % 2].copy_(inputs)
            captured[m % 2].replay()
            if not torch.equal(outputs[m % 2], expected[m]):
                wrong.append(m)
        times = context.size(TIMES, 2)
        eager = machine.seconds(lambda: forward(0), times)
        replayed = machine.seconds(captured[0].replay, times)
    told = f"micro-batches {wrong} differ" if wrong else "bits equal the layer's"
    line = f"{LAYERS} small layers: {eager * 1e6:.0f} us, replayed {replayed * 1e6:.0f} us"
    return Found(not wrong, [told, line], {"eager": eager, "replayed": replayed})
