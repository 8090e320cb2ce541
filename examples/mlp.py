"""An MLP on four stages: each process holds its own layers; the result is that of one process.

Run it:  torchrun --nproc-per-node 4 examples/mlp.py

Each process prints who it is. The last prints the loss over a data set whose last micro-batch is
shorter, the loss of one process, and whether all logits are the same bit for bit.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from runtime import Evaluator, LayerSpec


def main() -> None:
    """Evaluate in each of the processes."""
    torch.manual_seed(0)  # the same layers and data everywhere
    torch.set_num_threads(1)
    specs = [LayerSpec(nn.Linear, 16, 64), nn.functional.relu]  # a function is a layer, too
    for _ in range(6):
        specs += [LayerSpec(nn.Linear, 64, 64), nn.functional.relu]
    specs.append(LayerSpec(nn.Linear, 64, 4))
    sizes = (8, 8, 8, 8, 3)
    data = [(torch.randn(size, 16), torch.randint(4, (size,))) for size in sizes]

    dist.init_process_group("gloo")  # "nccl" with GPUs
    torch.manual_seed(1)  # of the weights: drawn as one process would draw them
    with Evaluator(specs, loss_fn=nn.functional.cross_entropy, stages=4) as evaluator:
        print(evaluator)
        loss, logits = evaluator.evaluate(data, return_logits=True)
        if evaluator.is_last:
            torch.manual_seed(1)
            layers = [spec.build() if isinstance(spec, LayerSpec) else spec for spec in specs]
            print(f"loss of four stages: {loss:.12f}")
            compare(layers, data, logits)
    dist.destroy_process_group()


def compare(layers: list[Any], data: list[Any], logits: tuple[Any, ...]) -> None:
    """Print what one process makes of the same data."""
    total = 0.0
    same = []
    with torch.no_grad():
        for (inputs, labels), found in zip(data, logits, strict=True):
            for layer in layers:
                inputs = layer(inputs)
            total += nn.functional.cross_entropy(inputs, labels).item() * len(labels)
            same.append(torch.equal(inputs, found))
    print(f"loss of one process: {total / sum(len(labels) for _, labels in data):.12f}")
    print("same logits, bit for bit:", all(same))


if __name__ == "__main__":
    main()
