"""The renderer: which tokens a conversation becomes, and which of them carry loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import architectures
from kamerton.base import Base
from kamerton.errors import ModelError
from kamerton.rendering import FIXED_DATE, PLAIN_TEMPLATE, Renderer
from kamerton.tasks.example import Message, conversation

SYSTEM, USER, ANSWER = Message("system", "Be brief."), Message("user", "2 + 2?"), "It is 4."

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SILENT_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}Today: {{ date_string }}"
    + architectures.TEMPLATE
)
BARE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"


def renderer(template: str | None = architectures.TEMPLATE, **special: str) -> Renderer:
    return Renderer(architectures.tokenizer(template, **special))


def text_of(r: Renderer, tokens: list[int] | tuple[int, ...]) -> str:
    return r.tokenizer.decode(list(tokens), skip_special_tokens=False)


# -- prompt and answer -------------------------------------------------------------------------------------------------


def test_prompt_and_answer_are_the_templates_own_rendering() -> None:
    r = renderer()
    messages = [SYSTEM, USER]
    assert text_of(r, r.prompt(messages)) == "<|system|>Be brief.<|end|><|user|>2 + 2?<|end|><|assistant|>"
    rendered = r.example(messages, ANSWER)
    whole = r.text([*messages, Message("assistant", ANSWER)], generation_prompt=False)
    assert text_of(r, rendered.tokens) == whole
    assert rendered.prompt_length == len(r.prompt(messages))
    assert not rendered.cut


def test_the_demo_models_prompt_is_what_its_template_says(demo: Base) -> None:
    r = demo.renderer
    messages = [USER, Message("assistant", "4"), Message("user", "And 3 + 3?")]
    own = r.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True, tokenize=True
    )["input_ids"]
    assert r.prompt(messages) == own
    rendered = r.example(messages, "6")
    full = r.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in [*messages, Message("assistant", "6")]], tokenize=True
    )["input_ids"]
    # the template writes a line break after the end token; generation has stopped by then
    assert list(rendered.tokens) == full[: len(rendered.tokens)]
    assert text_of(r, full[len(rendered.tokens) :]) == "\n"


def test_loss_is_on_the_answer_and_its_end_token_only() -> None:
    r = renderer()
    rendered = r.example([SYSTEM, USER], ANSWER)
    carrying = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]
    assert set(rendered.weights) == {0.0, 1.0}
    assert carrying == [*r.tokenizer(ANSWER)["input_ids"], r.end_id]
    assert text_of(r, [r.end_id]) == "<|end|>"


@pytest.mark.parametrize("pad", ["<|end|>", "</s>", "<pad>"])
def test_the_end_token_carries_loss_also_where_padding_shares_its_id(pad: str) -> None:
    r = renderer(pad_token=pad)
    rendered = r.example([USER], ANSWER)
    assert rendered.tokens[-1] == r.end_id
    assert rendered.weights[-1] == 1.0


def test_a_text_that_spells_a_special_token_in_the_prompt_carries_no_loss() -> None:
    r = renderer()
    rendered = r.example([Message("user", "what does <|end|> mean?")], "x")
    assert sum(rendered.weights) == 2
    assert rendered.weights[-2:] == (1.0, 1.0)


def test_multi_turn_conversations_keep_their_order_and_loss_is_on_the_last_turn() -> None:
    r = renderer()
    turns = conversation([("user", "a"), ("assistant", "b"), ("user", "c")])
    rendered = r.example(turns, "d")
    assert text_of(r, rendered.tokens) == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>d<|end|>"
    assert sum(rendered.weights) == 2


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.text(max_size=12), min_size=1, max_size=4), answer=st.text(max_size=20),
    system=st.none() | st.text(max_size=8),
)  # fmt: skip
def test_any_conversation_renders_as_prompt_then_answer(turns: list[str], answer: str, system: str | None) -> None:
    r = renderer()
    roles = ["user", "assistant"] * 4
    messages = [Message(roles[i], t) for i, t in enumerate(turns)]  # type: ignore[arg-type]
    if system is not None:
        messages.insert(0, Message("system", system))
    rendered = r.example(messages, answer)
    prompt = r.prompt(messages)
    assert list(rendered.tokens[: len(prompt)]) == prompt
    assert rendered.tokens[-1] == r.end_id
    assert rendered.weights == (0.0,) * len(prompt) + (1.0,) * (len(rendered.tokens) - len(prompt))
    assert rendered.prompt_length == len(prompt)
    assert r.decode(rendered.tokens[len(prompt) : -1]) == answer


# -- templates of other kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT_SYSTEM])
def test_a_template_without_a_system_role_gets_the_system_text_in_the_first_question(template: str) -> None:
    r = renderer(template)
    assert r.text([SYSTEM, USER]) == "<|user|>Be brief.\n\n2 + 2?<|end|><|assistant|>"
    assert r.text([SYSTEM]) == "<|user|>Be brief.<|end|><|assistant|>"
    assert r.text([USER]) == "<|user|>2 + 2?<|end|><|assistant|>"


def test_a_template_with_todays_date_gets_a_fixed_one() -> None:
    r = renderer(DATED)
    assert r.text([USER]).startswith(f"Today: {FIXED_DATE}<|user|>")


def test_a_base_without_a_template_gets_the_plain_one() -> None:
    r = renderer(None)
    assert r.plain
    assert r.template == PLAIN_TEMPLATE
    assert r.text([SYSTEM, USER]) == "Be brief.\n\nUser: 2 + 2?\nAssistant:\n"
    whole = r.text([USER, Message("assistant", "4"), Message("user", "!")])
    assert whole == "User: 2 + 2?\nAssistant:\n4</s>\nUser: !\nAssistant:\n"
    assert r.end_id == r.tokenizer.eos_token_id


def test_a_template_without_an_end_token_gets_the_tokenizers() -> None:
    assert renderer(BARE).end_id == 2
    tokenizer = architectures.tokenizer(BARE)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        Renderer(tokenizer)


def test_a_template_of_the_recipe_replaces_the_models_own() -> None:
    r = Renderer(architectures.tokenizer(), chat_template=BARE)
    assert r.text([USER]) == "[user] 2 + 2?\n[assistant] "
    assert not r.plain


def test_a_template_that_refuses_the_order_of_roles_gets_one_line() -> None:
    strict = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + architectures.TEMPLATE
    )
    r = renderer(strict)
    with pytest.raises(ModelError, match="refuses a conversation of assistant, user: user first") as caught:
        r.prompt(conversation([("assistant", "a"), ("user", "b")]))
    assert "\n" not in str(caught.value)


def test_a_template_that_is_no_jinja_gets_one_line() -> None:
    with pytest.raises(ModelError, match=r"not valid Jinja \(line 2"):
        renderer("{% for m in messages %}\n{{ m['content'] ")


@pytest.mark.parametrize(("name", "first"), [("llama", False), ("gpt2", False)])
def test_raw_text_has_no_template(name: str, first: bool, tiny_base: Callable[[str], Base]) -> None:
    r = tiny_base(name).renderer
    tokens = r.raw("abc")
    assert (tokens[0] == r.tokenizer.bos_token_id) is first
    assert r.decode(tokens) == "abc"


# -- what does not fit --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_cut_in_the_middle_of_the_longest_message_and_said() -> None:
    r = renderer()
    messages = (SYSTEM, Message("user", "start " + "x" * 200 + " end"))
    kept, cut = r.fit(messages, 60)
    assert cut
    assert kept[0] == SYSTEM
    assert kept[1].content.startswith("start x")
    assert kept[1].content.endswith("x end")
    assert " … " in kept[1].content
    assert len(r.prompt(kept)) <= 60
    assert r.fit(messages, 1000) == (messages, False)
    assert r.fit(messages, None) == (messages, False)


def test_an_answer_that_alone_is_too_long_teaches_no_end() -> None:
    r = renderer()
    rendered = r.example([USER], "y" * 100, limit=40)
    assert rendered.cut
    assert len(rendered.tokens) <= 40
    assert rendered.tokens[-1] != r.end_id
    assert rendered.weights[-1] == 1.0


def test_a_limit_shorter_than_the_template_is_refused() -> None:
    with pytest.raises(ModelError, match="longer than 2 tokens"):
        renderer().fit([USER], 2)


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.text(max_size=60), min_size=1, max_size=3), answer=st.text(max_size=40),
    limit=st.integers(24, 120),
)  # fmt: skip
def test_a_cut_example_always_fits_and_cuts_are_counted(contents: list[str], answer: str, limit: int) -> None:
    r = renderer()
    roles = ["user", "assistant", "user"]
    messages = tuple(Message(roles[i], c) for i, c in enumerate(contents))  # type: ignore[arg-type]
    whole = r.example(messages, answer)
    overhead = len(r.prompt([Message(m.role, "") for m in messages]))
    assume(overhead + limit // 2 + 8 <= limit)
    rendered = r.example(messages, answer, limit=limit)
    assert len(rendered.tokens) <= limit
    assert rendered.cut == (len(whole.tokens) > limit or len(r.answer(answer)) > limit // 2)
    if not rendered.cut:
        assert rendered == whole
    assert any(rendered.weights)


# -- identity -----------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_stable_and_sees_template_vocabulary_and_end() -> None:
    one = renderer().fingerprint
    assert renderer().fingerprint == one
    assert len(one) == 64
    assert renderer(architectures.TEMPLATE + " ").fingerprint != one
    tokenizer = architectures.tokenizer()
    tokenizer.add_tokens(["☃"])
    assert Renderer(tokenizer).fingerprint != one
    assert Renderer(architectures.tokenizer(), end_ids=(5,)).fingerprint != one
    assert Renderer(architectures.tokenizer(), end_ids=(2,)).fingerprint == one, "the end token is known already"


def test_the_fingerprint_survives_saving(tmp_path_factory: pytest.TempPathFactory) -> None:
    import transformers

    folder = tmp_path_factory.mktemp("tokenizer")
    architectures.tokenizer().save_pretrained(folder)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert Renderer(loaded).fingerprint == renderer().fingerprint
