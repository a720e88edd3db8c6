"""The same table in Markdown (for README files) and LaTeX (booktabs, for papers)."""

from __future__ import annotations

from kamerton.comparison.report.data import Comparison, Record, scale_of
from kamerton.comparison.units import duration, fixed, plain, quantity

HEADINGS = (
    "Rank", "Method", "Score", "95% interval", "Trained parameters", "Fit", "FLOPs", "Tokens an answer", "KL",
    "Δ bits a byte",
)  # fmt: skip
"""KL to the base on general prompts in nats a token, and the change of bits a byte on a general text: forgetting."""


def cells_of(comparison: Comparison, found: Record) -> list[list[str]]:
    """One row a method, best first, as text."""
    metric = comparison.deciding
    if metric is None or not found["verdict"]:
        return []
    scale = scale_of(metric)
    methods = {m["label"]: m for m in found["methods"]}
    rows = []
    for row in found["verdict"]["rows"]:
        m = methods[row["label"]]
        prompt, generated = m["tokens_per_answer"]["prompt"], m["tokens_per_answer"]["generated"]
        rows.append(
            [
                str(row["rank"]),
                row["label"],
                scale.score(row["value"]),
                f"{scale.number(row['low'])} to {scale.number(row['high'])}",
                plain(m["trainable_parameters"]),
                duration(m["seconds"]["fit"]),
                quantity(m["flops"]["fit"]),
                "–" if prompt is None or generated is None else f"{prompt:.0f} + {generated:.0f}",
                fixed(m["forgetting"]["kl"]),
                fixed(m["forgetting"]["bits_per_byte_change"], sign=True),
            ]
        )
    return rows


def caption(comparison: Comparison, found: Record) -> str:
    metric = comparison.deciding
    verdict = found["verdict"]
    if metric is None or not verdict or not verdict["rows"]:
        return f"{comparison.name}: no finished cells."
    task = (comparison.settings.get("task") or {}).get("name", comparison.name)
    base = (comparison.settings.get("base") or {}).get("name", "the base")
    seeds = max(len(row["seeds"]) for row in verdict["rows"])
    return (
        f"{scale_of(metric).name} on {task} with {base}: {verdict['examples']} test examples, "
        f"{seeds} seed{'s' if seeds > 1 else ''}. Methods of one rank are not told apart from the best of it. "
        "Forgetting: KL to the base on general prompts, nats a token, and change of bits a byte on a general text."
    )


def markdown_table(comparison: Comparison, found: Record) -> str:
    rows = cells_of(comparison, found)
    lines = [found["verdict"]["sentence"] if found["verdict"] else "No cell has finished yet.", ""]
    lines += [
        "| " + " | ".join(HEADINGS) + " |",
        "| " + " | ".join(["---:", "---", *["---:"] * (len(HEADINGS) - 2)]) + " |",
    ]
    lines += ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", caption(comparison, found), ""])


def latex_table(comparison: Comparison, found: Record) -> str:
    rows = cells_of(comparison, found)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(caption(comparison, found))}}}",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{rl{'r' * (len(HEADINGS) - 2)}}}",
        r"\toprule",
        " & ".join(_latex(heading) for heading in HEADINGS) + r" \\",
        r"\midrule",
        *(" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    for character in "\\|`*_<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "\N{MINUS SIGN}": "$-$", "Δ": r"$\Delta$", "\N{EN DASH}": "--", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
