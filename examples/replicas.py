"""Two replicas of a pipeline of two stages: each evaluates its share of the data, and all know all.

Run it:  torchrun --nproc-per-node 4 examples/replicas.py   (pip install torchmetrics)

Each process prints which replica and which stage it is. Then every one of them knows the loss and
the metrics of all samples, and the first prints them: they are those of one process.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from runtime import Evaluator, ShardSampler


def largest_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A metric that is a function of a micro-batch is averaged as the loss is."""
    return (1 - logits.softmax(-1).gather(-1, labels[:, None])).max()


def main() -> None:
    """Evaluate in each of the processes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 4))
    data = TensorDataset(torch.randn(101, 16), torch.randint(4, (101,)))

    dist.init_process_group("gloo")
    evaluator = Evaluator(
        layers,
        loss_fn=nn.functional.cross_entropy,
        metrics={"accuracy": MulticlassAccuracy(4, average="micro"), "largest": largest_error},
        stages=2,
        replicas=2,
    )
    print(evaluator)
    share = ShardSampler(data, evaluator.replicas, evaluator.replica)
    result = evaluator.evaluate(DataLoader(data, batch_size=8, sampler=share))
    if dist.get_rank() == 0:
        print(f"loss {result.loss:.6f}, accuracy {result.metrics['accuracy']:.6f}")
        with torch.no_grad():
            logits = layers(data.tensors[0])
        loss = nn.functional.cross_entropy(logits, data.tensors[1])
        accuracy = (logits.argmax(-1) == data.tensors[1]).double().mean()
        print(f"loss {loss:.6f}, accuracy {accuracy:.6f} in one process")
    evaluator.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
