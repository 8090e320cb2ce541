"""The model `schedcc` of lm-evaluation-harness beside its `hf` and a plain loop over transformers.

Each contender has processes of its own, and all take turns.

`python -m benchmarks.harness [--model NAME] [--windows N] [--length N] [--repeats N]` prints for
each contender the median tokens per second, the seconds from the start of the process to the first
answer, the CPU time of a token in the first process, and the peak memory of the largest process.
"""

import argparse
import json
import pydoc_data.topics
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

PLAIN = "transformers"
CONTENDERS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "hf": {"device": "cpu"},
    "schedcc, S = 1": {"stages": 1},
    "schedcc, S = 2": {"stages": 2},
}


def main() -> None:
    """Measure all contenders, or one of them in this process."""
    parser = argparse.ArgumentParser(prog="benchmarks.harness")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS)
    options = parser.parse_args()
    if options.contender is not None:
        print(json.dumps(_measured(options)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(options.repeats):
        for name, results in found.items():
            command = [sys.executable, "-m", "benchmarks.harness", *sys.argv[1:]]
            done = subprocess.run(
                [*command, "--contender", name], stdout=subprocess.PIPE, text=True, check=True
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, results[-1], file=sys.stderr)
    print(
        f"{options.model}: {options.windows} windows of {options.length} tokens, medians of",
        end=" ",
    )
    print(f"{options.repeats} runs in turn")
    for name, results in found.items():
        medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
        print(f"{name:16}", "  ".join(f"{key} {value:.3f}" for key, value in medians.items()))


def _measured(options: argparse.Namespace) -> dict[str, float]:
    """What one contender needs, in this process and those that it starts."""
    if options.contender == PLAIN:
        return _plain(options)
    began = time.perf_counter()
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from runtime.language.harness import register
    from runtime.language.models import locate_model

    def asked(kind: str, *arguments: str) -> list[Any]:
        return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]

    register()
    model = get_model("hf" if options.contender == "hf" else "schedcc")(
        pretrained=str(locate_model(options.model).directory),
        dtype="float32",
        max_length=options.length,
        batch_size=options.batch_size,
        **CONTENDERS[options.contender],
    )
    model.loglikelihood(asked("loglikelihood", "A", " word"), disable_tqdm=True)
    first = time.perf_counter() - began
    text = " ".join(pydoc_data.topics.topics.values())
    count = options.length * options.windows
    tokens = model.tok_encode(text[: 8 * count])[:count]
    text = model.tokenizer.decode(tokens)
    before, own = time.perf_counter(), _cpu_seconds(resource.RUSAGE_SELF)
    answer = model.loglikelihood_rolling(asked("loglikelihood_rolling", text), disable_tqdm=True)
    seconds = time.perf_counter() - before
    own = _cpu_seconds(resource.RUSAGE_SELF) - own
    if options.contender != "hf":
        model.close()
    usages = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {
        "tokens/s": len(tokens) / seconds,
        "first answer s": first,
        "own CPU ms/token": 1000 * own / len(tokens),
        "peak MiB": max(resource.getrusage(who).ru_maxrss for who in usages) / 1024,
        "log-probability": answer[0],
    }


def _plain(options: argparse.Namespace) -> dict[str, float]:
    """What a loop over windows needs that has nothing but the model, its logits and their loss."""
    began = time.perf_counter()
    import torch

    from runtime.language.models import load_causal_lm, load_tokenizer, locate_model

    files = locate_model(options.model)
    model, tokenizer = load_causal_lm(files), load_tokenizer(files)
    text = " ".join(pydoc_data.topics.topics.values())
    count = options.length * options.windows
    tokens = tokenizer(text[: 8 * count])["input_ids"][:count]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokens[0]
    labels = torch.tensor(tokens).view(options.windows, options.length)
    inputs = torch.tensor([start, *tokens[:-1]]).view_as(labels)

    def scored(first: int, stop: int) -> float:
        with torch.no_grad():
            logits = model(input_ids=inputs[first:stop], use_cache=False).logits.flatten(0, 1)
        wanted = labels[first:stop].flatten()
        return -float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))

    with torch.no_grad():
        model(input_ids=inputs[:1, :2], use_cache=False)
    first = time.perf_counter() - began
    before, own = time.perf_counter(), _cpu_seconds(resource.RUSAGE_SELF)
    size = options.batch_size
    total = sum(scored(n, n + size) for n in range(0, options.windows, size))
    seconds = time.perf_counter() - before
    return {
        "tokens/s": len(tokens) / seconds,
        "first answer s": first,
        "own CPU ms/token": 1000 * (_cpu_seconds(resource.RUSAGE_SELF) - own) / len(tokens),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "log-probability": total,
    }


def _cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
