"""Tiny random encoders with tokenizers of their own kind, for tests: WordPiece (BERT, DistilBERT, DeBERTa) or bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

WORDS = (
    "the a red blue green house river stands flows old new by in of who what where name town is was near far 0 1 2 3 "
    "4 5 6 7 8 9 north south Ada Boris Clara lives works writes and or not very Paris Rome Oslo"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
KINDS = ("bert", "roberta", "distilbert", "deberta-v2")


def tokenizer(kind: str) -> Any:
    """A fast tokenizer that knows a few words; others are letters, of RoBERTa all are bytes."""
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    order = list(special.values())
    if kind == "roberta":
        special = {
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "mask_token": "<mask>",
        }
        # RoBERTa's padding id is 1, behind which its positions begin
        order = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        own = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate([*order, *letters])}, []))
        own.add_special_tokens(order)
        own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        own.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        names = ["input_ids", "attention_mask"]
    else:
        # a vocabulary that is trained comes out in another order each time
        words = [w if kind == "deberta-v2" else w.lower() for w in WORDS]
        pieces = dict.fromkeys([*order, *LETTERS, *(f"##{c}" for c in LETTERS), *words])
        own = tokenizers.Tokenizer(models.WordPiece({name: i for i, name in enumerate(pieces)}, unk_token="[UNK]"))
        own.normalizer = normalizers.BertNormalizer(lowercase=kind != "deberta-v2")
        own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        own.add_special_tokens(order)
        ids = {name: own.token_to_id(name) for name in order}
        own.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )  # fmt: skip
        names = ["input_ids", "attention_mask"] + (["token_type_ids"] if kind != "distilbert" else [])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, model_input_names=names, **special)


def save(folder: Path, kind: str = "bert", *, layers: int = 2, positions: int = 130, seed: int = 0) -> Path:
    """A folder as it is published: the encoder under a head for masked words, no pooler where such models have none."""
    made = tokenizer(kind)
    common = {
        "vocab_size": len(made), "max_position_embeddings": positions, "pad_token_id": made.pad_token_id,
        "initializer_range": 0.1, "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
    if kind == "distilbert":
        sizes = {"dim": 32, "hidden_dim": 48, "n_layers": layers, "n_heads": 4}
    if kind == "roberta":
        common["type_vocab_size"] = 1
    if kind == "deberta-v2":
        sizes |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 2}
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **common, **sizes)
    hf = transformers.AutoModelForMaskedLM.from_config(config)
    hf.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
