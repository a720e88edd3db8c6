"""An adapter as a folder that peft loads beside its base, with a page that says how.

What peft knows itself (LoRA, DoRA, IA³, soft prompts, prefixes) it loads alone. Our own parameterisations register with
peft when the module that defines them is imported; the page and the command name it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from kamerton.base.load import Base
from kamerton.base.quantise import kind_of
from kamerton.errors import KamertonError, ModelError
from kamerton.exporting.verify import check_bits, digest
from kamerton.files import write_text
from kamerton.tuning import Tuned

PAGE = "README.md"


def needed_import(tuned: Tuned) -> str | None:
    """The module of ours that a program imports before peft can load the adapter; None: peft knows it."""
    module = type(tuned.peft.active_peft_config).__module__
    return module if module.startswith("kamerton.") else None


def write_adapter(base: Base, tuned: Tuned, method: str, folder: Path) -> None:
    """Write an adapter, its tokenizer's folder and the page; read the weights back.

    Raises:
        ModelError: the file does not hold the adapter's weights.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    tuned.save(folder)
    wanted = {name: digest(weight) for name, weight in get_peft_model_state_dict(tuned.peft).items()}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        check_bits(wanted, {name: digest(file.get_tensor(name)) for name in file.keys()}, folder)  # noqa: SIM118
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name(base)[0]  # a hub id or the user's folder, not a cache of this machine
    write_text(path, json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
    write_text(folder / PAGE, page(base, tuned, method))


def base_name(base: Base) -> tuple[str, str | None]:
    """What transformers loads the base by, and the command that makes it where it is no model folder yet."""
    name = str(base.request.get("name", base.info.source))
    if name == "demo" or name.endswith(".gguf"):
        folder = f"{Path(name).stem}-base"
        return folder, f"kamerton export {name} --format safetensors --output {folder}"
    return name, None


def page(base: Base, tuned: Tuned, method: str) -> str:
    """How to load the adapter, as Markdown."""
    name, command = base_name(base)
    own, four_bits = needed_import(tuned), kind_of(tuned.model.hf) is not None
    loading = [f"    {name!r}, dtype=torch.{base.info.dtype},"]
    if four_bits:
        loading.append(
            "    quantization_config=BitsAndBytesConfig(\n"
            '        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,\n'
            f"        bnb_4bit_compute_dtype=torch.{base.info.dtype},\n    ),"
        )
    lines = [
        f"# An adapter made by `{method}`",
        f"Base: `{base.info.name}` ({base.info.architecture}, {base.info.parameters:,} parameters, {base.info.dtype})",
    ]
    if command:
        lines.append(f"The base is written as a folder that transformers loads by:\n\n```bash\n{command}\n```")
    imports = ["import torch", "from peft import PeftModel"]
    imports.append(f"from transformers import AutoModelForCausalLM{', BitsAndBytesConfig' if four_bits else ''}")
    if own:
        lines.append(f"peft does not know this kind of adapter; importing `{own}` (package `kamerton`) registers it.")
        imports.append(f"\nimport {own}  # registers the adapter's kind with peft")
    code = [*imports, "", "base = AutoModelForCausalLM.from_pretrained(", *loading, ")",
            'model = PeftModel.from_pretrained(base, ".").eval()  # this folder']  # fmt: skip
    lines.append("```python\n" + "\n".join(code) + "\n```")
    lines.append("The tokenizer and the chat template that the adapter was trained with are in this folder too.")
    return "\n\n".join(lines) + "\n"


def load_with_peft(base: Base, tuned: Tuned, folder: Path) -> Any:
    """The adapter that was written, on a fresh copy of its base, by peft alone."""
    from peft import PeftModel

    fresh = base.reload(quantise="nf4" if kind_of(tuned.model.hf) else None)
    try:
        return PeftModel.from_pretrained(fresh.model.hf, str(folder)).eval()
    except Exception as error:
        raise ModelError(
            f"peft cannot load what was written ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            where=folder, mend="report this",
        ) from error  # fmt: skip


def check_adapter(tuned: Tuned | None, method: str) -> Tuned:
    """Refuse what is no adapter.

    Raises:
        KamertonError: nothing was trained, or all weights were.
    """
    if tuned is None:
        raise KamertonError(f"{method} trained no adapter", where="export", mend="use --format safetensors or gguf")
    if tuned.peft is None:
        mend = "use --format safetensors or gguf"
        raise KamertonError(f"{method} trained the model's own weights, not an adapter", where="export", mend=mend)
    return tuned


def settled(peft: Any, dtype: torch.dtype) -> Any:
    """An adapter inside the layers in the base's data type, in which our side computes it (soft prompts stay)."""
    if not peft.active_peft_config.is_prompt_learning:
        for name, parameter in peft.named_parameters():
            if peft.base_model.prefix in name:
                parameter.data = parameter.data.to(dtype)
    return peft
