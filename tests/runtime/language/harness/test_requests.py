"""The harness's rules for requests, each on its own."""

import lm_eval.models.utils
import pytest
from lm_eval.api.instance import Instance

from runtime.language.harness import SchedccLM
from runtime.language.harness.generation import (
    GenerationRequest,
    answer_text,
    end_tokens,
    generation_request,
    is_stopped,
)
from runtime.language.harness.model import _order
from runtime.language.harness.processes import started
from runtime.language.harness.tokens import scored_pair, special_tokens
from runtime.language.models import locate_model
from runtime.language.scoring import ScorerOptions, TokenPair
from tests.support.tiny_models import POSITIONS, tiny_tokenizer


def ask(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("t", 0, 1))


@pytest.fixture
def model(tiny_directory):
    model = SchedccLM(pretrained=tiny_directory, threads=1)
    yield model
    model.close()


def test_a_pair_is_cut_from_the_left_and_its_last_token_takes_no_room():
    pair = scored_pair([1, 2, 3, 4], [5, 6], max_length=3)
    assert (pair.context, pair.continuation, pair.inputs) == ((3, 4), (5, 6), (3, 4, 5))
    assert scored_pair([1], [5, 6], max_length=3).context == (1,)
    assert scored_pair([1, 2], [5, 6, 7], max_length=3).inputs == (2, 5, 6)
    with pytest.raises(ValueError, match="a continuation has 4 tokens, needed at most 3"):
        scored_pair([1], [5, 6, 7, 8], max_length=3)


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("loglikelihood", ("c", ""), r'request 1 \("c"\): the continuation is empty'),
        ("loglikelihood", ("", ""), r'request 1 \(""\): it is empty'),
        ("loglikelihood", ("", "<s>"), r'request 1 \("<s>"\): the continuation is empty'),
        (
            "loglikelihood",
            ("a\x1b\n", "dog" * 90),
            r'request 1 \("a\\x1b\\n(dog){19}"\): a continuation has \d+ tokens, needed at most 64',
        ),
        ("generate_until", ("", {"max_gen_toks": 2}), r'request 1 \(""\): the context is empty'),
    ],
)
def test_a_request_that_cannot_be_is_named_by_its_number_and_its_text(model, kind, arguments, said):
    good = ("a", "c") if kind == "loglikelihood" else ("a", {"max_gen_toks": 2})
    with pytest.raises(ValueError, match=said):
        getattr(model, kind)([ask(kind, *good), ask(kind, *arguments)], disable_tqdm=True)


def test_a_request_that_is_longer_than_the_model_takes_is_named(tiny_directory):
    model = SchedccLM(pretrained=tiny_directory, threads=1, max_length=POSITIONS + 9)
    with pytest.raises(ValueError, match=r'request 0 \("(dog){20}"\): .*64'):
        model.loglikelihood([ask("loglikelihood", "dog" * 99, "c")], disable_tqdm=True)
    model.close()


def test_tokens_are_cut_from_the_left_and_decoded_as_hf_does(model):
    tokens = model.tok_encode("a b c")
    assert model.tok_encode("a b c", left_truncate_len=2) == tokens[-2:]
    assert model.tok_encode("a b c", left_truncate_len=0) == tokens
    assert model.tok_decode([0, *tokens]) == "a b c"
    assert model.tok_decode([0, *tokens], skip_special_tokens=False) == "<s>a b c"
    assert model.tok_decode(0, skip_special_tokens=False) == "<s>"


def test_answers_after_one_context_stay_together_the_longest_first():
    long, short = list(range(9)), list(range(5))
    pairs = [
        TokenPair(short, [1]),
        TokenPair(long, [1]),
        TokenPair(list(range(10)), [1]),
        TokenPair(long, [1, 2, 3]),
        TokenPair([7], [1, 2, 3]),
        TokenPair(short, [3]),
    ]
    assert _order(pairs) == [3, 1, 2, 0, 5, 4]


@pytest.mark.parametrize(
    ("text", "add_special_tokens", "add_bos_token", "wanted"),
    [
        ("a", None, None, {}),
        ("a", None, True, {"add_special_tokens": True}),
        ("a", None, False, {"add_special_tokens": False}),
        ("<s>a", None, True, {"add_special_tokens": False}),
        ("<s>a", True, None, {"add_special_tokens": True}),
    ],
)
def test_a_text_that_has_its_start_gets_no_other(text, add_special_tokens, add_bos_token, wanted):
    found = special_tokens(
        text, "<s>", add_special_tokens=add_special_tokens, add_bos_token=add_bos_token
    )
    assert found == wanted


def test_the_prefix_token_is_the_users_or_that_of_the_beginning_or_of_the_end(model):
    assert model.prefix_token_id == 0
    model.tokenizer.bos_token = None
    assert model.prefix_token_id == 1
    model.custom_prefix_token_id = 7
    assert model.prefix_token_id == 7


def test_a_text_without_a_context_has_the_prefix_token_once(model, monkeypatch):
    asked = []
    monkeypatch.setattr(model, "_loglikelihood_tokens", lambda new, **_: asked.extend(new))
    model.loglikelihood([ask("loglikelihood", "", "ab"), ask("loglikelihood", "", "<s>c")])
    ab, c = model.tokenizer.encode("ab"), model.tokenizer.encode("c")
    assert [tokens for _, *tokens in asked] == [[[0], ab], [[0], c]]


def test_spaces_at_the_end_of_a_context_belong_to_the_answer(model):
    context, answer = model._encode_pair("c  ", "d")
    assert model.tokenizer.decode(context) == "c"
    assert model.tokenizer.decode(answer) == "  d"


def test_the_length_is_that_of_the_configuration_or_the_users(model, tiny_directory):
    assert model.max_length == POSITIONS
    other = SchedccLM(pretrained=tiny_directory, max_length=10)
    assert other.max_length == 10
    (answer,) = other.loglikelihood_rolling([ask("loglikelihood_rolling", "dog" * 30)])
    assert answer < 0


def test_an_empty_text_has_the_probability_one(model):
    assert model.loglikelihood_rolling([ask("loglikelihood_rolling", "")]) == [0]


def test_answers_go_to_the_cache_by_their_requests(model):
    found = []

    class Hook:
        def add_partial(self, kind, request, answer):
            found.append((kind, tuple(request), answer))

    model.set_cache_hook(Hook())
    pair = model.loglikelihood([ask("loglikelihood", "a", "c")])[0]
    total = model.loglikelihood_rolling([ask("loglikelihood_rolling", "ab")])[0]
    settings = {"until": ["x"], "max_gen_toks": 2}
    text = model.generate_until([ask("generate_until", "a", settings)])[0]
    assert found == [
        ("loglikelihood", ("a", "c"), pair),
        ("loglikelihood_rolling", ("ab",), total),
        ("generate_until", ("a", settings), text),
    ]


def test_a_cache_that_several_pipelines_would_share_is_refused(model, monkeypatch):
    monkeypatch.setattr(model._processes, "stages", 2)
    monkeypatch.setattr(model._processes, "replicas", 2)
    with pytest.raises(ValueError, match="use_cache with 2 replicas of 2 stages"):
        model.set_cache_hook(None)


def test_a_generation_ends_with_the_texts_of_the_task_or_the_end_of_a_text():
    found = generation_request(
        {"until": "x", "max_new_tokens": 3, "do_sample": False, "top_p": 0.9, "num_beams": 1},
        end_of_text="</s>",
        max_gen_toks=5,
    )
    assert (found.until, found.max_gen_toks) == (("x", "</s>"), 3)
    assert generation_request({}, end_of_text="</s>", max_gen_toks=5).max_gen_toks == 5


def test_a_text_that_ends_a_generation_is_found_in_other_tokens():
    tokenizer = tiny_tokenizer()
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert len(tokenizer.encode("ab")) == 1
    assert is_stopped(tokenizer, [5, 6, *a, *b], ["ab"])
    assert not is_stopped(tokenizer, [*a, *b, 5, 6, 7], ["ab"])
    assert not is_stopped(tokenizer, [*a], ["ab"])


def test_a_generation_ends_where_the_files_of_the_model_say(tiny_directory, model, tmp_path):
    files = locate_model(tiny_directory)
    assert end_tokens(files.directory, model.config) == {model.config.eos_token_id}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert end_tokens(tmp_path, model.config) == {3, 4}
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    with pytest.raises(ValueError, match=r"sets repetition_penalty to 1\.1"):
        end_tokens(tmp_path, model.config)


def test_a_generation_has_to_leave_room_for_its_context(model):
    settings = {"until": [], "max_gen_toks": POSITIONS}
    with pytest.raises(ValueError, match="max_gen_toks is 64, needed less than"):
        model.generate_until([ask("generate_until", "a", settings)])


def test_thoughts_are_no_part_of_an_answer():
    tokenizer = tiny_tokenizer()
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    whole, cut = GenerationRequest((), 9), GenerationRequest(("b",), 9)
    assert answer_text(tokenizer, [a, b, a, b, c], whole, b) == "c"
    assert answer_text(tokenizer, [a, b, a, b, c], whole, "b") == "c"
    assert answer_text(tokenizer, [a, b, c], cut, None) == "a"


def test_a_chat_template_that_refuses_system_messages_gets_none(model):
    model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}|{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[assistant|"
        "{% endif %}{% if enable_thinking %}think{% endif %}"
    )
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert model.apply_chat_template(messages) == "[user|u][assistant|"
    model.chat_template_args["enable_thinking"] = True
    assert model.apply_chat_template(messages[1:]) == "[user|u][assistant|think"
    assert model.chat_template(True) == model.tokenizer.chat_template
    assert model.tokenizer_name == model.tokenizer.name_or_path.replace("/", "__")


def test_thinking_is_for_tasks_that_generate(model, tiny_directory):
    with pytest.raises(ValueError, match="needed a think_end_token"):
        SchedccLM(pretrained=tiny_directory, enable_thinking=True)
    model.enable_thinking = True
    with pytest.raises(ValueError, match="needed tasks that generate"):
        model.loglikelihood([])


def test_replicas_need_a_launcher(tiny_directory):
    with pytest.raises(ValueError, match="replicas is 2, but this process was started alone"):
        started(locate_model(tiny_directory), ScorerOptions(), stages=3, replicas=2)


def test_alone_a_process_has_all_there_is_to_gather(model):
    assert (model.rank, model.world_size) == (0, 1)
    assert model.gather_object("x") == ["x"]
    assert model.all_gather("x") == "x"
    model.barrier()


def test_the_harness_finds_the_model_by_name_and_by_entry_point():
    from importlib.metadata import entry_points

    from lm_eval.api.registry import get_model

    from runtime.language.harness import NAME, register

    register()
    register()
    assert get_model(NAME) is SchedccLM
    assert NAME not in lm_eval.models.MODEL_MAPPING
    points = entry_points(group="lm_eval.models")
    if NAME in points.names:  # where this package is installed
        assert points[NAME].load() is SchedccLM
