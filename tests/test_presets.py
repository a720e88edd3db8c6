"""Presets against transformers' own configurations and torch's own modules; published counts; sizes; arithmetic."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from kamerton.base.encoder_decoder import EncoderDecoderModel
from kamerton.base.model import CausalModel
from kamerton.base.presets import PRESETS, Shape, build, get_preset, parameters
from kamerton.base.published import PUBLISHED
from kamerton.base.show import account, lines
from kamerton.base.sizing import fitted, read_size
from kamerton.base.work import flops
from kamerton.cli.main import app
from kamerton.errors import RecipeError

pytestmark = pytest.mark.usefixtures("_one")

TINY = Shape(width=32, depth=2, heads=4, vocabulary=60, context=24)
SPECIAL = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def _one() -> None:
    torch.set_num_threads(1)


def made(name: str, shape: Shape = TINY) -> Any:
    preset = PRESETS[name]
    torch.manual_seed(0)
    return build(preset.config(shape, SPECIAL), preset.kind).eval()


# -- published models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_are_reproduced(name: str) -> None:
    """Within 1%; a row that is not says why, and agrees with the digits of what it says."""
    told = PUBLISHED[name]
    own = account(name).parameters
    off = own / told.parameters - 1
    if told.note:
        assert 0.01 < abs(off) < 0.04
        assert name in ("bert-large", "transformer-base")
    else:
        assert abs(off) < 0.01, f"{own:,} against {told.parameters:,.0f}"


def test_the_two_rows_that_do_not_agree_are_as_their_notes_say() -> None:
    assert round(account("bert-large").parameters / 1e7) == 34
    base, big = (account(n) for n in ("transformer-base", "transformer-big"))
    # the vocabulary that each published count takes, everything else as it is
    needed = [37000 + (PUBLISHED[n].parameters - a.parameters) / a.shape.width
              for n, a in (("transformer-base", base), ("transformer-big", big))]  # fmt: skip
    assert [round(v, -2) for v in needed] == [40700, 35800]


def test_active_parameters_of_mixtral_are_the_published_ones() -> None:
    assert account("mixtral-8x7b").active == pytest.approx(12.9e9, rel=0.005)
    assert account("llama-7b").active == account("llama-7b").parameters


# -- logits ---------------------------------------------------------------------------------------------------------


OWN: dict[str, Any] = {
    "gpt": lambda s: transformers.OpenAIGPTConfig(vocab_size=s.vocabulary, n_positions=s.context, n_embd=s.width, n_layer=s.depth, n_head=s.heads),
    "gpt2": lambda s: transformers.GPT2Config(vocab_size=s.vocabulary, n_positions=s.context, n_embd=s.width, n_layer=s.depth, n_head=s.heads),
    "llama": lambda s: transformers.LlamaConfig(vocab_size=s.vocabulary, hidden_size=s.width, num_hidden_layers=s.depth, num_attention_heads=s.heads, intermediate_size=96),
    "moe": lambda s: transformers.MixtralConfig(vocab_size=s.vocabulary, hidden_size=s.width, num_hidden_layers=s.depth, num_attention_heads=s.heads, num_key_value_heads=s.heads, intermediate_size=96),
    "bert": lambda s: transformers.BertConfig(vocab_size=s.vocabulary, hidden_size=s.width, num_hidden_layers=s.depth, num_attention_heads=s.heads, intermediate_size=128),
}  # fmt: skip
"""transformers' own configuration of the published model with nothing but its sizes changed."""


@pytest.mark.parametrize("name", OWN)
def test_logits_are_those_of_transformers_own_configuration(name: str) -> None:
    ours = made(name)
    theirs = type(ours)(OWN[name](TINY)).eval()
    state = {k: v for k, v in ours.state_dict().items() if not k.endswith(("position_ids", "attn.bias"))}
    if name == "bert":  # its published context is longer
        table = "bert.embeddings.position_embeddings.weight"
        state[table] = torch.cat([state[table], torch.zeros(512 - TINY.context, TINY.width)])
    missing = theirs.load_state_dict(state, strict=False).missing_keys
    assert not [k for k in missing if not k.endswith(("position_ids", "attn.bias"))]
    ids = torch.randint(1, 60, (2, 12))
    key = "prediction_logits" if name == "bert" else "logits"
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[key], theirs(ids)[key])


def test_the_original_transformer_is_torchs_own() -> None:
    """Norms behind each sublayer, ReLU, sinusoids, embeddings times the root of the width: by hand around nn.Transformer."""
    ours, h = made("transformer"), TINY.width
    # no norm behind the last layer: post-norm layers end with their own
    theirs = nn.Transformer(h, TINY.heads, TINY.depth, TINY.depth, 4 * h, dropout=0.0, batch_first=True)
    theirs.encoder.norm = theirs.decoder.norm = None
    theirs.eval()

    def attention(target: nn.MultiheadAttention, source: Any) -> None:
        parts = (source.q_proj, source.k_proj, source.v_proj)
        target.in_proj_weight.data = torch.cat([p.weight for p in parts])
        target.in_proj_bias.data = torch.cat([p.bias for p in parts])
        target.out_proj.load_state_dict(source.out_proj.state_dict())

    for half in ("encoder", "decoder"):
        for a, b in zip(getattr(theirs, half).layers, getattr(ours.model, half).layers, strict=True):
            attention(a.self_attn, b.self_attn)
            norms = [b.self_attn_layer_norm, b.final_layer_norm]
            if half == "decoder":
                attention(a.multihead_attn, b.encoder_attn)
                norms.insert(1, b.encoder_attn_layer_norm)
            for i, norm in enumerate(norms):
                getattr(a, f"norm{i + 1}").load_state_dict(norm.state_dict())
            a.linear1.load_state_dict(b.fc1.state_dict())
            a.linear2.load_state_dict(b.fc2.state_dict())

    def embed(ids: torch.Tensor) -> torch.Tensor:
        place = torch.arange(ids.shape[1])[:, None] / 10000 ** (torch.arange(0, h, 2) / h)
        # sines in the first half, cosines in the second: the paper's interleaved ones in another order
        return ours.model.shared(ids) * math.sqrt(h) + torch.cat([place.sin(), place.cos()], dim=1)

    source, target = torch.randint(1, 60, (2, 9)), torch.randint(1, 60, (2, 7))
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    with torch.no_grad():
        hidden = theirs(embed(source), embed(target), tgt_mask=mask)
        expected = hidden @ ours.model.shared.weight.T + ours.final_logits_bias
        torch.testing.assert_close(
            ours(input_ids=source, decoder_input_ids=target).logits, expected, atol=2e-5, rtol=1e-4
        )


def test_llava_reads_an_image_and_a_text() -> None:
    hf = made("llava", Shape(64, 2, 2, 60, 96))
    tokens = hf.config.image_seq_length
    assert tokens == 64
    ids = torch.cat([torch.full((1, tokens), hf.config.image_token_index), torch.tensor([[5, 6]])], dim=1)
    with torch.no_grad():
        one, other = (hf(input_ids=ids, pixel_values=p).logits[0, -1] for p in torch.randn(2, 1, 3, 64, 64))
    assert float((one - other).abs().max()) > 1e-6, "what is seen changes what is said"


# -- sizes ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(
    size=st.integers(1_000_000, 80_000_000),
    name=st.sampled_from(["llama", "gpt2", "bert", "transformer", "lstm", "moe"]),
)
def test_a_size_is_met_within_the_step_of_the_rule(size: int, name: str) -> None:
    """From a million on; below, a step of the width is most of the model (a mixture at 500,000 has 38% of it)."""
    preset = PRESETS[name]
    vocabulary = 500
    try:
        shape = fitted(preset, size, vocabulary, 128)
    except RecipeError:
        smallest = parameters(build(preset.config(Shape(32, 1, 1, vocabulary, 128), {}), preset.kind, meta=True))
        assert size < smallest
        return
    count = parameters(build(preset.config(shape, {}), preset.kind, meta=True))
    assert 0.55 < count / size < 1.6
    assert preset.recurrent or shape.width % shape.heads == 0


def test_the_rule_gives_the_published_shapes() -> None:
    for size, name, width, depth in (("7b", "llama", 4096, 32), ("124m", "llama", 768, 12)):
        shape = fitted(PRESETS[name], read_size(size), 32000, 2048)
        assert (shape.width, shape.depth) == (width, depth)


@pytest.mark.parametrize(
    ("text", "value"), [("10m", 10**7), ("1.3B", 13 * 10**8), ("300k", 300_000), ("5_000", 5000), (7, 7)]
)
def test_sizes_are_read(text: Any, value: int) -> None:
    assert read_size(text) == value


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: read_size("ten"), "'ten' is not a size"),
        (lambda: read_size("0m"), "is not a size"),
        (lambda: get_preset("lama"), "unknown preset 'lama'; did you mean llama"),
        (lambda: account("gpt2-xl", "10m"), "has its size already"),
        (lambda: account("llama", "10m", width=64), "size and width or depth are given together"),
        (lambda: account("llama", width=64, heads=7), "7 heads do not divide 64"),
        (lambda: account("llama", "100k"), "no llama has as few as 100,000 parameters"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(call: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "moe", "transformer"])
def test_flops_a_token_are_those_that_torch_counts(name: str) -> None:
    """`show` counts on the meta device; torch counts what is really multiplied, forward and backward."""
    shape = Shape(64, 2, 4, 60, 32, experts=4)
    told = account_of(name, shape)
    hf = made(name, shape).train()
    hf.requires_grad_(True)
    n = shape.context
    ids = torch.randint(1, 60, (1, n))
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if name == "transformer" else {})
    hf.config._experts_implementation = "eager"  # torch does not count grouped products
    hf.config._attn_implementation = "eager"  # the pairs above the diagonal are computed too, and counted below
    with FlopCounterMode(display=False) as counter:
        out = hf(**given, use_cache=False).logits
    everything = counter.get_total_flops() / n
    wide = 4 * shape.width * shape.depth * (n - (n + 1) / 2)  # what a causal mask leaves out
    assert told.forward == pytest.approx(everything - wide, rel=0.01)
    assert out.requires_grad
    assert told.training == pytest.approx(3 * told.forward, rel=0.001)


def account_of(name: str, shape: Shape) -> Any:
    from kamerton.base.show import measured

    return measured(PRESETS[name], shape)


@pytest.mark.parametrize("name", ["llama", "moe", "lstm", "lstm-attention"])
def test_work_of_training_is_what_show_says(name: str) -> None:
    """The same step, counted while it runs."""
    from kamerton.base.encoder_decoder import model_for
    from kamerton.rendering import Rendered
    from kamerton.training.batches import make_batch

    shape = Shape(32, 2, 4, 60, 16, experts=4)
    hf = made(name, shape)
    model = model_for(hf)
    n = shape.context
    if name == "lstm-attention":
        assert isinstance(model, EncoderDecoderModel)
        row = Rendered(tuple(range(1, 2 * n + 1)), (0.0,) * n + (1.0,) * n)
        model.target_log_probs(make_batch([row])).sum().backward()
        assert model.work.encoder_tokens == model.work.tokens == model.work.grad_tokens == n
        assert (
            flops(model.work, hf)
            > 6
            * sum(p.numel() for m in (hf.encoder.layers, hf.decoder.cells) for p in m.parameters() if p.ndim == 2)
            * n
        )
        return
    assert isinstance(model, CausalModel)
    hidden = model.forward([list(range(1, n + 1))]).rows
    model.log_probs(hidden, torch.zeros(n, dtype=torch.long)).sum().backward()
    assert flops(model.work, hf) / n == pytest.approx(account_of(name, shape).training, rel=1e-6)


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_lists_everything_and_shows_one() -> None:
    listed = CliRunner().invoke(app, ["base", "show"], env={"COLUMNS": "160"})
    assert listed.exit_code == 0
    assert all(name in listed.output for name in (*PRESETS, *PUBLISHED))
    # a count that is off has its reason under the table
    under = " ".join(listed.output.split("llava-1.5-7b")[-1].split())
    for name, about in PUBLISHED.items():
        off = abs(account(name).parameters / about.parameters - 1)
        assert bool(about.note) == (off > 0.01)
        assert (f"{name}: {about.note}" in under) == bool(about.note)
    one = CliRunner().invoke(app, ["base", "show", "mixtral-8x7b"], env={"COLUMNS": "160"})
    assert "46,702,792,704" in one.output
    assert "8, 2 for each token" in one.output
    assert "12.88 B" in one.output


def test_lines_are_json_free_and_name_the_source() -> None:
    told = dict(lines(account("transformer-base")))
    assert "about 37,000" in told["published"]
    assert "6 + 6 layers" in told["shape"]
    json.dumps(told)
