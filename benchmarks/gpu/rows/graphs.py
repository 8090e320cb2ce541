"""Row 7: layers whose forward is captured into a CUDA graph, as with `cuda_graphs=True`."""

import torch
from torch import nn

from benchmarks.gpu.context import Context
from benchmarks.gpu.report import Found
from benchmarks.gpu.workload import WIDTH, data, layers
from runtime.execution.cuda_graphs import GraphedLayers

LAYERS = 16
TIMES = 100


def graphs(context: Context) -> Found:
    """The bits of a replay are those of the layers; and what replaying saves."""
    machine = context.machine
    device = machine.device
    width = context.size(WIDTH, 16)
    plain = nn.Sequential(*layers(LAYERS, width)).to(device).eval()
    graphed = GraphedLayers(0, plain, device, machine.capture)
    # Two shapes by turns, so that there are two graphs.
    pairs = data(context.size(16, 4), 8, width) + data(context.size(16, 4), 4, width)
    inputs = [pair[0].to(device) for pair in pairs]
    with torch.no_grad():
        expected = [plain(x) for x in inputs]
        found = [graphed(x) for x in inputs]
        wrong = [
            m for m, (y, z) in enumerate(zip(found, expected, strict=True)) if not torch.equal(y, z)
        ]
        times = context.size(TIMES, 2)
        eager = machine.seconds(lambda: plain(inputs[0]), times)
        replayed = machine.seconds(lambda: graphed(inputs[0]), times)
    told = f"micro-batches {wrong} differ" if wrong else "bits equal the layers'"
    line = f"{LAYERS} small layers: {eager * 1e6:.0f} us, replayed {replayed * 1e6:.0f} us"
    return Found(not wrong, [told, line], {"eager": eager, "replayed": replayed})
