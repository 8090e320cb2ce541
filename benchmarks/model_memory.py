"""Peak resident memory of each process of a pipeline, against loading the whole model.

`python -m benchmarks.model_memory` writes a Llama with random weights (about 1 GB in float32) to a
temporary directory, loads it over S processes and evaluates one window. The peak is `VmHWM` of
`/proc/self/status` (Linux), mapped pages of files included. The fixed overhead, of Python, torch,
transformers and a process group, is what a model of a few megabytes takes in the same way.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from runtime import Evaluator
from runtime.distributed.process_group import process_group
from runtime.distributed.processes import launch
from runtime.language.models import layer_costs, lazy_causal_lm, load_causal_lm, locate_model
from runtime.modules.partition import balanced
from runtime.transport import TorchTransport

MIB = 2**20
TOKENS = 64


@dataclass(frozen=True)
class Measurement:
    """One process: the bytes of the weights that it holds, and its peak resident bytes."""

    weights: int
    peak: int


def write_model(
    directory: Path,
    *,
    hidden: int,
    blocks: int,
    shard_layers: int = 4,
    vocabulary: int | None = None,
) -> int:
    """Write a Llama with random weights in shards, one shard in memory at a time; its bytes."""
    vocabulary, inner = vocabulary or 8 * hidden, 11 * hidden // 4
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": max(1, hidden // 64),
        "num_key_value_heads": max(1, hidden // 64),
        "max_position_embeddings": 2048,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    block: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")},
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    layers: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (vocabulary, hidden)},
        *(
            {f"model.layers.{n}.{name}": size for name, size in block.items()}
            for n in range(blocks)
        ),
        {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)},
    ]
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    total = 0
    for start in range(0, len(layers), shard_layers):
        shard = f"model-{start:05d}.safetensors"
        tensors = {
            name: torch.empty(size).normal_(std=0.02, generator=generator)
            for layer in layers[start : start + shard_layers]
            for name, size in layer.items()
        }
        save_file(tensors, directory / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    return total


def by_stages(directory: str) -> list[Measurement]:
    """Load one stage and evaluate a window; what all stages measured."""
    torch.set_num_threads(1)
    with process_group() as device:
        transport = TorchTransport(device=device)
        model = lazy_causal_lm(locate_model(directory))
        evaluator = Evaluator(
            model.specs(device),
            partition=balanced(layer_costs(model.layers, TOKENS), transport.ranks),
            transport=transport,
        )
        ids = torch.zeros(1, TOKENS, dtype=torch.int64)
        evaluator.evaluate([(ids, ids)] if evaluator.is_first else None, compute_loss=False)
        weights = sum(parameter.nbytes for parameter in evaluator.module.parameters())
        found: list[Measurement] = transport.gather_objects(Measurement(weights, peak_bytes()))
        return found


def whole(directory: str) -> list[Measurement]:
    """Load the whole model as transformers does, and evaluate the same window."""
    torch.set_num_threads(1)
    with process_group():
        model = load_causal_lm(locate_model(directory))
        with torch.no_grad():
            model(input_ids=torch.zeros(1, TOKENS, dtype=torch.int64), use_cache=False)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        return [Measurement(weights, peak_bytes())]


def peak_bytes() -> int:
    """The largest resident set that this process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this needs Linux")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-S", "--stages", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=18)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        large, small = Path(place) / "large", Path(place) / "small"
        large.mkdir()
        small.mkdir()
        total = write_model(large, hidden=options.hidden, blocks=options.blocks)
        write_model(small, hidden=64, blocks=options.blocks)
        overhead = max(m.peak for m in launch(options.stages, by_stages, str(small)))
        rows = [
            (f"stage {stage} of {options.stages}", measured)
            for stage, measured in enumerate(launch(options.stages, by_stages, str(large)))
        ]
        rows += [("whole model, transformers", launch(1, whole, str(large))[0])]
    table = Table(
        title=f"{total / MIB:.0f} MiB of weights; fixed overhead {overhead / MIB:.0f} MiB"
    )
    for column in ("process", "weights, MiB", "peak resident, MiB", "peak - overhead, MiB"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, measured in rows:
        sizes = (measured.weights, measured.peak, measured.peak - overhead)
        table.add_row(name, *(f"{size / MIB:.0f}" for size in sizes))
    Console().print(table)


if __name__ == "__main__":
    main()
