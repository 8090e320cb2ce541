"""Scores over stages, against the model of transformers in one process."""

import os
import pathlib
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import T5Config, T5ForConditionalGeneration

from runtime.language.models import ModelError, load_causal_lm, locate_model
from runtime.language.scoring import LocalScorer, ScorerOptions, TokenPair
from runtime.language.scoring.batching import MicroBatch
from runtime.language.scoring.greedy import generate_greedily
from runtime.modules.partition import PartitionError
from tests.support.other_users import ports
from tests.support.tiny_models import POSITIONS, VOCABULARY, tiny_model, tiny_tokenizer

OPTIONS = ScorerOptions(threads=1, max_tokens=200)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pairs():
    generator = random.Random(3)

    def tokens(most):
        return [generator.randrange(VOCABULARY) for _ in range(generator.randint(1, most))]

    found = [TokenPair(tokens(POSITIONS - 5), tokens(6)) for _ in range(40)]
    context, answer = tokens(20), tokens(6)
    return [
        *found,
        *(TokenPair(context, [answer]) for answer in range(VOCABULARY)),
        *(TokenPair(context, answer[:length]) for length in range(1, 1 + len(answer))),
    ]


def computed(monkeypatch):
    """Notes the lengths of the rows that are given to a model."""
    lengths = []
    whole = MicroBatch.inputs

    def inputs(batch):
        lengths.extend(len(row.tokens) for row in batch.rows)
        return whole(batch)

    monkeypatch.setattr(MicroBatch, "inputs", inputs)
    return lengths


def test_a_scorer_opens_no_port_and_removes_its_directory(directory):
    before = ports(os.getpid())
    with LocalScorer(directory, OPTIONS, stages=2) as scorer:
        scorer.score(pairs()[:3])
        workers = scorer._workers
        assert [ports(process.pid) for process in workers._processes] == [[]]
        assert ports(os.getpid()) == before
        meeting = workers.directory
        assert meeting is not None
        assert meeting.is_dir()
    assert not meeting.exists()


def of_transformers(directory, asked):
    model = load_causal_lm(locate_model(directory))
    found = []
    for pair in asked:
        with torch.no_grad():
            log_probs = model(torch.tensor([pair.inputs])).logits[0].log_softmax(-1)
        log_probs = log_probs[-len(pair.continuation) :]
        targets = torch.tensor(pair.continuation)
        found.append(
            (
                log_probs.gather(1, targets[:, None]).sum().item(),
                bool((log_probs.argmax(-1) == targets).all()),
            )
        )
    return found


def test_scores_are_those_of_transformers_for_any_number_of_stages(directory):
    asked = pairs()
    wanted = of_transformers(directory, asked)
    assert {greedy for _, greedy in wanted} == {True, False}
    results = []
    for stages in (1, 3):
        told = []
        with LocalScorer(directory, OPTIONS, stages=stages) as scorer:
            scores = scorer.score(asked, progress=told.append)
            tokens = scorer.next_tokens([pair.context for pair in asked])
            assert scorer.score(asked) == scores
            assert scorer.score([]) == []
        assert sum(told) == len(asked)
        for score, (log_prob, is_greedy) in zip(scores, wanted, strict=True):
            assert score.log_prob == pytest.approx(log_prob, abs=1e-4)
            assert score.is_greedy == is_greedy
        results.append((scores, tokens))
    assert results[0] == results[1]
    assert not dist.is_initialized()


def test_what_answers_have_in_common_is_computed_once(directory, monkeypatch):
    lengths, context = computed(monkeypatch), list(range(20))
    answers = ([1], [2], [1], [3, 4, 5], [3, 4], [3], [6, 7])
    with LocalScorer(directory, OPTIONS) as scorer:
        scorer.score([TokenPair(context, answer) for answer in answers])
        assert lengths == [22, 21]
        lengths.clear()
        first, second, third = scorer.next_tokens([context, [5], context])
        assert lengths == [20, 1]
        assert first == third != second


def test_a_context_that_is_longer_than_a_micro_batch_is_shared(directory, monkeypatch):
    lengths, context = computed(monkeypatch), list(range(40))
    options = replace(OPTIONS, share_contexts=True, max_tokens=16)
    with LocalScorer(directory, options) as scorer:
        scorer.score([TokenPair(context, [n, n, n]) for n in range(4)])
    assert lengths[-1] == 40 + 4 * 2


def test_generation_is_that_of_transformers(directory):
    model = load_causal_lm(locate_model(directory))
    contexts = [[5, 9, 17], [200, 4], [3] * 20]
    with LocalScorer(directory, OPTIONS) as scorer:
        told = []
        generated = generate_greedily(
            scorer,
            contexts,
            max_new_tokens=12,
            is_done=lambda tokens: len(tokens) == 5 and tokens[0] % 2 == 0,
            progress=told.append,
        )
    for context, tokens in zip(contexts, generated, strict=True):
        wanted = model.generate(
            torch.tensor([context]), max_new_tokens=12, do_sample=False, eos_token_id=-1
        )[0, len(context) :].tolist()
        assert tokens == wanted[: 5 if wanted[0] % 2 == 0 else 12]
    assert sum(told) == 3


def test_what_the_model_cannot_be_given_is_one_error(directory):
    with LocalScorer(directory, OPTIONS) as scorer:
        with pytest.raises(ModelError, match=f"{VOCABULARY + 3}"):
            scorer.score([TokenPair([1, VOCABULARY + 3], [1])])
        with pytest.raises(ModelError, match=str(POSITIONS)):
            scorer.score([TokenPair([1] * (POSITIONS + 1), [1])])
        with pytest.raises(ValueError, match="sequence 0 is empty"):
            scorer.next_tokens([[]])
    with pytest.raises(ValueError, match="was closed"):
        scorer.score([TokenPair([1], [1])])
    with pytest.raises(PartitionError, match="9 stages for the 5 layers"):
        LocalScorer(directory, stages=9)


def test_what_sequences_begin_with_can_be_computed_once(directory):
    asked = [*pairs(), *(TokenPair(range(30), range(n, 2 * n)) for n in range(1, 9))]
    options = replace(OPTIONS, share_contexts=True)
    with LocalScorer(directory, options) as scorer:
        scores = scorer.score(asked)
    for score, (log_prob, is_greedy) in zip(scores, of_transformers(directory, asked), strict=True):
        assert score.log_prob == pytest.approx(log_prob, abs=1e-4)
        assert score.is_greedy == is_greedy


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_score_depends_on_no_other_length(tmp_path, rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
        rope |= {"original_max_position_embeddings": POSITIONS}
    tiny_model("llama", rope_parameters=rope).save_pretrained(tmp_path)
    tokens = [pair.inputs[0] for pair in pairs()]
    lengths = (POSITIONS, POSITIONS + 2, 2 * POSITIONS)
    asked = [TokenPair(tokens[n : n + length - 2], [1, 2, 3]) for n, length in enumerate(lengths)]
    # From the shortest to the longest: then transformers embeds each by its own length.
    wanted = [log_prob for log_prob, _ in of_transformers(str(tmp_path), asked)]
    with LocalScorer(str(tmp_path), OPTIONS) as scorer:
        alone = [scorer.score([pair])[0].log_prob for pair in asked]
        after = [scorer.score([pair])[0].log_prob for pair in asked[::-1]][::-1]
        together = [score.log_prob for score in scorer.score(asked)]
    assert alone == after == together == pytest.approx(wanted, abs=1e-5)


def test_a_model_that_does_not_heed_its_mask_shares_nothing(directory, monkeypatch):
    monkeypatch.setattr(MicroBatch, "inputs", lambda batch: {"input_ids": batch.input_ids()})
    with (
        LocalScorer(directory, replace(OPTIONS, share_contexts=True)) as scorer,
        pytest.raises(ValueError, match="nats when contexts are shared, needed a model that heeds"),
    ):
        scorer.score([TokenPair([1], [2])])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int8"}, "dtype is 'int8', needed one of float32"),
        ({"softmax_dtype": "auto"}, "softmax_dtype is 'auto', needed one of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timeout": 0}, "timeout is 0 seconds, needed more than 0"),
        ({"timeout": "5"}, "timeout is '5' seconds, needed more than 0"),
        ({"share_contexts": "False"}, "share_contexts is 'False', needed True or False"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ScorerOptions(**options)


def require_refusals(scorer):
    """Tokens that the model does not know are named, and the scorer goes on."""
    unknown = f"holds the token {VOCABULARY}, and .* knows {VOCABULARY} tokens, from 0 on"
    known = scorer.score([TokenPair([1], [2])])
    for pair in (TokenPair([1, 2], [VOCABULARY]), TokenPair([VOCABULARY], [1])):
        with pytest.raises(ModelError, match=f"pair 1 {unknown}"):
            scorer.score([TokenPair([1], [2]), pair])
    with pytest.raises(ModelError, match=f"sequence 1 {unknown}"):
        scorer.next_tokens([[1], [VOCABULARY]])
    for sequence, said in (([-1], "-1, needed token ids from 0"), ([1.5], "holds 1.5")):
        with pytest.raises(ValueError, match=f"sequence 0 .*{said}"):
            scorer.next_tokens([sequence])
    assert scorer.score(iter([TokenPair([1], [2])])) == known


def test_a_token_that_the_model_does_not_know_is_named_and_the_scorer_goes_on(directory):
    with LocalScorer(directory, OPTIONS) as scorer:
        require_refusals(scorer)


@pytest.mark.parametrize(
    ("context", "continuation", "said"),
    [
        ((1, 1), (-100,), "the continuation holds the token -100, needed token ids from 0 on"),
        ((1, -1), (2,), "the context holds the token -1, needed token ids from 0 on"),
        ((1, 2.5), (3,), "the context holds 2.5, needed token ids"),
        ((1,), (None,), "the continuation holds None, needed token ids"),
        ("text", (1,), "the context holds 'text', needed token ids"),
        (7, (1,), "the context holds 7, needed token ids"),
        ((1,), torch.tensor([0.5]), "the continuation holds 0.5, needed token ids"),
        ((), (1,), "the context is empty, needed at least one token"),
        (np.array([1]), torch.tensor([], dtype=torch.int64), "the continuation is empty"),
    ],
)
def test_what_are_no_token_ids_is_shown(context, continuation, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        TokenPair(context, continuation)


def test_token_ids_may_lie_in_arrays_and_tensors():
    pair = TokenPair(np.array([0]), torch.tensor([1, 2]))
    assert pair == TokenPair((np.int64(0),), (1, 2))
    assert type(pair.context[0]) is type(pair.continuation[0]) is int


def test_a_second_scorer_of_several_stages_names_the_first_which_can_be_closed(directory):
    first = LocalScorer(pathlib.Path(directory), OPTIONS, stages=2)
    require_refusals(first)
    with pytest.raises(ValueError, match=r"another scorer is open in this process \(.*, 2 stages"):
        LocalScorer(directory, OPTIONS, stages=2)
    LocalScorer.close_all()
    with pytest.raises(ValueError, match="was closed"):
        first.score([TokenPair([1], [2])])
    assert not dist.is_initialized(), "there may be another one"


def test_an_encoder_decoder_is_refused_by_its_family(tmp_path):
    config = T5Config(vocab_size=100, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as raised:
        LocalScorer(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} is of the family 't5' (an encoder and a decoder), of which transformers has "
        "no model that AutoModelForCausalLM builds"
    )
