"""Architecture presets: the shapes of published model families, built from transformers' own classes.

A preset turns a `Shape` (width, depth, heads, …) into a transformers configuration; `published.py` has the shapes of
published models, `sizing.py` picks one for a number of parameters. Nothing here computes: a model is made from a
configuration by `build`, on the meta device where only its shapes are asked for.

The multimodal preset has LLaVA's shape (an image encoder, a projector, a LLaMA); it is built and counted here, and its
text side computes like any causal model, but training it on images is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kamerton.errors import RecipeError
from kamerton.recipe_errors import closest

Kind = Literal["causal", "masked", "encoder-decoder"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a preset is built from.

    Attributes:
        width: H, the hidden size. For recurrent models the size of the state, and of embeddings.
        depth: layers; of an encoder–decoder the layers of each of its halves.
        heads: attention heads.
        vocabulary: V, tokens.
        context: the most positions of a sequence.
        kv_heads: heads of keys and values; None: as many as `heads`.
        feed_forward: inner width of the feed-forward layer; None: the preset's own rule.
        experts, active: feed-forward experts of a mixture, and how many of them a token goes through.
        tied: whether the output layer is the transposed embedding; None: the preset's own rule.
        vision: (width, depth, heads, feed-forward, image side, patch side) of an image encoder.
    """

    width: int
    depth: int
    heads: int
    vocabulary: int
    context: int
    kv_heads: int | None = None
    feed_forward: int | None = None
    experts: int = 8
    active: int = 2
    tied: bool | None = None
    vision: tuple[int, int, int, int, int, int] | None = None


Special = Mapping[str, int | None]
"""Ids of special tokens, by transformers' names for them (`eos_token_id`, …)."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One family.

    Attributes:
        name: as recipes name it.
        summary: what it is, in a line.
        paper: where it comes from.
        kind: what it is trained to do: the next token, masked tokens, or an answer to what its encoder read.
        config: makes a transformers configuration of a shape.
        vocabulary, context: what it is shown with where nobody names others.
        recurrent: whether it has no attention over positions (its `heads` mean nothing).
    """

    name: str
    summary: str
    paper: str
    kind: Kind
    config: Callable[[Shape, Special], Any] = field(repr=False)
    vocabulary: int = 32000
    context: int = 1024
    recurrent: bool = False


def _gpt(s: Shape, special: Special) -> Any:
    from transformers import OpenAIGPTConfig

    return OpenAIGPTConfig(
        vocab_size=s.vocabulary, n_positions=s.context, n_embd=s.width, n_layer=s.depth, n_head=s.heads,
        tie_word_embeddings=s.tied is not False, **special,
    )  # fmt: skip


def _gpt2(s: Shape, special: Special) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=s.vocabulary, n_positions=s.context, n_embd=s.width, n_layer=s.depth, n_head=s.heads,
        n_inner=s.feed_forward, tie_word_embeddings=s.tied is not False, **special,
    )  # fmt: skip


def gated_width(width: int) -> int:
    """LLaMA's rule for the inner width of a gated feed-forward layer: 8/3 of the width, rounded up.

    Rounded to a multiple of 256 as LLaMA does (of 32 below a width of 1024), so that it costs about what an ungated
    layer of four times the width does.
    """
    multiple = 256 if width >= 1024 else 32
    return -(-int(8 * width / 3) // multiple) * multiple


def _llama(s: Shape, special: Special) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=s.vocabulary, max_position_embeddings=s.context, hidden_size=s.width, num_hidden_layers=s.depth,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads or s.heads,
        intermediate_size=s.feed_forward or gated_width(s.width), tie_word_embeddings=bool(s.tied), **special,
    )  # fmt: skip


def _moe(s: Shape, special: Special) -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=s.vocabulary, max_position_embeddings=s.context, hidden_size=s.width, num_hidden_layers=s.depth,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads or s.heads,
        intermediate_size=s.feed_forward or gated_width(s.width), num_local_experts=s.experts,
        num_experts_per_tok=s.active, sliding_window=None, router_aux_loss_coef=0.01, tie_word_embeddings=bool(s.tied),
        **special,
    )  # fmt: skip


def _bert(s: Shape, special: Special) -> Any:
    from transformers import BertConfig

    given = {k: v for k, v in special.items() if k == "pad_token_id" and v is not None}
    return BertConfig(
        vocab_size=s.vocabulary, max_position_embeddings=s.context, hidden_size=s.width, num_hidden_layers=s.depth,
        num_attention_heads=s.heads, intermediate_size=s.feed_forward or 4 * s.width,
        tie_word_embeddings=s.tied is not False, **given,
    )  # fmt: skip


def _transformer(s: Shape, special: Special) -> Any:
    from transformers import MarianConfig

    end = special.get("eos_token_id")
    pad = special.get("pad_token_id")
    end, pad = 0 if end is None else end, 0 if pad is None else pad
    inner = s.feed_forward or 4 * s.width
    # Marian's classes are the original: sinusoids, norms behind each sublayer, embeddings times √width, one embedding
    # for both languages and the output layer
    return MarianConfig(
        vocab_size=s.vocabulary, max_position_embeddings=s.context, d_model=s.width, encoder_layers=s.depth,
        decoder_layers=s.depth, encoder_attention_heads=s.heads, decoder_attention_heads=s.heads,
        encoder_ffn_dim=inner, decoder_ffn_dim=inner, activation_function="relu", scale_embedding=True, dropout=0.1,
        init_std=s.width**-0.5, eos_token_id=end, pad_token_id=pad, decoder_start_token_id=pad, forced_eos_token_id=end,
        bos_token_id=None, tie_word_embeddings=True, share_encoder_decoder_embeddings=True,
    )  # fmt: skip


def _llava(s: Shape, special: Special) -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig

    # by default an image encoder of half the language model's width and depth, on images of 8 × 8 patches
    half = max(32, s.width // 2)
    width, depth, heads, inner, image, patch = s.vision or (half, max(1, s.depth // 2), half // 32, 4 * half, 64, 8)
    seen = CLIPVisionConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=inner,
        image_size=image, patch_size=patch, projection_dim=width,
    )  # fmt: skip
    text = _llama(s, special)
    # the last token of the vocabulary stands for a place in an image; the two layers before the projector as in LLaVA
    layer = -2 if depth > 1 else -1
    return LlavaConfig(
        vision_config=seen, text_config=text, image_token_index=s.vocabulary - 1, vision_feature_layer=layer,
        image_seq_length=(image // patch) ** 2, tie_word_embeddings=bool(s.tied),
    )  # fmt: skip


def _recurrent(cell: str) -> Callable[[Shape, Special], Any]:
    def make(s: Shape, special: Special) -> Any:
        from kamerton.base.recurrent import RecurrentConfig

        return RecurrentConfig(
            cell=cell, vocab_size=s.vocabulary, hidden_size=s.width, num_hidden_layers=s.depth,
            tie_word_embeddings=s.tied is not False, **dict[str, Any](special),
        )  # fmt: skip

    return make


def _lstm_attention(s: Shape, special: Special) -> Any:
    from kamerton.base.recurrent_attention import RecurrentAttentionConfig

    pad = special.get("pad_token_id")
    return RecurrentAttentionConfig(
        vocab_size=s.vocabulary, hidden_size=s.width, num_hidden_layers=s.depth,
        tie_word_embeddings=s.tied is not False, eos_token_id=special.get("eos_token_id"), pad_token_id=pad,
        decoder_start_token_id=0 if pad is None else pad,
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "gpt", "decoder, learned positions, norm behind each sublayer", "Radford et al. 2018", "causal", _gpt,
            40478, 512,
        ),
        Preset(
            "gpt2", "decoder, learned positions, norm before each sublayer", "Radford et al. 2019", "causal", _gpt2,
            50257, 1024,
        ),
        Preset(
            "gpt3", "as gpt2 with twice the context (published with sparse attention in every other layer)",
            "Brown et al. 2020, arXiv 2005.14165", "causal", _gpt2, 50257, 2048,
        ),
        Preset(
            "llama", "decoder, RMSNorm before each sublayer, SwiGLU, rotary positions, grouped-query attention",
            "Touvron et al. 2023, arXiv 2302.13971", "causal", _llama, 32000, 2048,
        ),
        Preset(
            "moe", "as llama with a mixture of feed-forward experts, the best few for each token",
            "Jiang et al. 2024, arXiv 2401.04088", "causal", _moe, 32000, 32768,
        ),
        Preset(
            "bert", "encoder, learned positions; masked tokens and next sentence",
            "Devlin et al. 2019, arXiv 1810.04805", "masked", _bert, 30522, 512,
        ),
        Preset(
            "transformer", "the original encoder–decoder: sinusoidal positions, norm behind each sublayer, ReLU",
            "Vaswani et al. 2017, arXiv 1706.03762", "encoder-decoder", _transformer, 37000, 1024,
        ),
        Preset(
            "llava", "image encoder → projector → llama", "Liu et al. 2023, arXiv 2304.08485", "causal", _llava,
            32064, 4096,
        ),
        Preset(
            "rnn", "recurrent, tanh (Elman)", "Mikolov et al. 2010", "causal", _recurrent("rnn"), 32000, 1024, True,
        ),
        Preset(
            "lstm", "recurrent, long short-term memory", "Hochreiter & Schmidhuber 1997; Zaremba et al. 2014, "
            "arXiv 1409.2329", "causal", _recurrent("lstm"), 32000, 1024, True,
        ),
        Preset(
            "gru", "recurrent, gated", "Cho et al. 2014, arXiv 1406.1078", "causal", _recurrent("gru"), 32000, 1024,
            True,
        ),
        Preset(
            "lstm-attention", "LSTM encoder–decoder with additive attention", "Bahdanau et al. 2015, arXiv 1409.0473",
            "encoder-decoder", _lstm_attention, 32000, 1024, True,
        ),
    )
}  # fmt: skip
"""Every preset by its name."""


def get_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        RecipeError: there is none.
    """
    if name not in PRESETS:
        raise RecipeError(f"unknown preset '{name}'", mend=closest(name, PRESETS))
    return PRESETS[name]


def build(config: Any, kind: Kind, *, meta: bool = False) -> Any:
    """A transformers model with fresh weights in float32; on the meta device (shapes, no numbers) where asked.

    Weights come from torch's global generator: seed it first.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    if config.model_type == "llava":
        make: Any = transformers.LlavaForConditionalGeneration
    elif kind == "masked":
        make = transformers.BertForPreTraining
    else:
        auto = transformers.AutoModelForSeq2SeqLM if kind == "encoder-decoder" else transformers.AutoModelForCausalLM
        make = auto.from_config
    with torch.device("meta" if meta else "cpu"):
        return make(config)


def parameters(hf: Any) -> int:
    """Numbers that are learned, each once (sinusoids are not, a tied output layer is its embedding)."""
    return sum(p.numel() for p in hf.parameters() if p.requires_grad)
