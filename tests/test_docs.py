"""The documentation says what is there: links resolve, options and defaults are current, examples run."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

import tiny
from kamerton.base import Base
from kamerton.cli.main import app
from kamerton.evaluation.metrics import metric_names
from kamerton.inference import Sampling
from kamerton.methods import METHODS, get_method, load_adapted, parse_options
from kamerton.methods.method import Method, Run
from kamerton.methods.search import shown, space_of
from kamerton.methods.trained import TrainedMethod
from kamerton.recipe import (
    BaseSpec,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    ForgettingSpec,
    Layout,
    RaceSpec,
    Recipe,
    TaskSpec,
)
from kamerton.recipe_task import Phrasing
from kamerton.resources import CellResources
from kamerton.rewards import REWARDS, build_reward, get_reward
from kamerton.rewards.parse import check_reward, parse_reward
from kamerton.training import Budget
from readme_commands import blocks, commands

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """The anchors that headings of a page get."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), f"{page.name} links to {target}"
        assert path.is_relative_to(ROOT), f"{page.name} links outside the repository: {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page.name} links to {target}"


def test_every_page_is_in_the_index() -> None:
    index = read("docs/README.md")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, name


@pytest.mark.parametrize("name", METHODS)
def test_method_pages_name_all_options_with_their_defaults(name: str) -> None:
    page, method = read(f"docs/methods/{name}.md"), get_method(name)
    arxiv = re.search(r"arXiv ([\d.]+)", method.paper)
    assert (arxiv.group(1) if arxiv else method.paper) in page
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, re.MULTILINE))
    assert told == {option: str(field.default) for option, field in method.options.model_fields.items()}
    for option, values in space_of(method).items():
        assert ", ".join(map(shown, values)) in page, option
    for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for entry in yaml.safe_load(block)["methods"]:
            named, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            parse_options(get_method(named), {k: v for k, v in options.items() if k != "label"})


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_page_names_all_options_with_their_defaults(name: str) -> None:
    sections = {s.partition("\n")[0]: s for s in re.split(r"^## ", read("docs/rewards.md"), flags=re.MULTILINE)}
    section, options = sections[name], get_reward(name).options.model_fields
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.MULTILINE))
    assert told == {o: "needed" if field.is_required() else str(field.default) for o, field in options.items()}
    examples = re.findall(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert examples
    for block in examples:
        assert name in [part.name for part in parse_reward(yaml.safe_load(block)["reward"])]


def test_rewards_page_shows_what_recipes_can_say_and_how_a_function_is_written(tmp_path: Path) -> None:
    page = read("docs/rewards.md")
    assert re.findall(r"^\| \[([\w-]+)\]\(#\1\) \|", page, re.MULTILINE) == list(REWARDS)
    for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        parse_options(get_method("lora"), {"objective": "supervised", **yaml.safe_load(block)})
    (code,) = [code for language, code in blocks(page) if language == "python"]
    (tmp_path / "rewards.py").write_text(code)
    (spec,) = [b for b in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "on_error" in b]
    options = yaml.safe_load(spec.replace("rewards.py:", f"{tmp_path}/rewards.py:"))["reward"]["function"]
    kind = get_reward("function")
    own = kind(kind.options(**options))  # type: ignore[call-arg]
    (example,) = tiny.colours(1, 0)
    assert own([example], [example.answers[0]]) == pytest.approx([1 - 0.001 * len(example.answers[0])])
    assert own.range == (-1, 1)


@pytest.mark.parametrize("readme", ["README.md", "README.ru.md"])
def test_readmes_list_all_methods(readme: str) -> None:
    assert re.findall(r"^\| \[([\w-]+)\]\(docs/methods/\1\.md\) \|", read(readme), re.MULTILINE) == list(METHODS)


def test_bases_page_tells_which_methods_work_on_encoder_decoders() -> None:
    """Told apart by the code: what is trained says so itself; what is only asked works wherever a model answers."""
    own = {name: getattr(get_method(name), "parameterisation", None) for name in METHODS}
    other = {name for name, what in own.items() if getattr(what, "encoder", False)}  # of encoders, on a page of theirs
    causal = [name for name, what in own.items() if what and not getattr(what, "encoder_decoder", False)]
    assert all(
        f"`{n}` is for [encoders](encoders.md) only." in read("docs/base.md") for n in other.intersection(causal)
    )
    causal = [name for name in causal if name not in other]
    causal = [n for n in METHODS if n in causal or not getattr(get_method(n), "encoder_decoder", True)]
    told = re.search(r"^`thinking-budget`.*?refused in one line", read("docs/base.md"), re.MULTILINE | re.DOTALL)
    assert told is not None
    alone, both = (re.findall(r"`([\w-]+)`", part) for part in told.group().split("All other methods"))
    assert alone == [*causal, "language-modeling", "adversarial", "grpo", "ppo"]
    rest = [n for n in METHODS if n not in causal and (own[n] is None or getattr(own[n], "encoder_decoder", False))]
    assert [name for name in both if name in METHODS] == rest


def test_both_readmes_have_the_same_code() -> None:
    assert len(blocks(read("README.md"))) > 5
    assert blocks(read("README.md")) == blocks(read("README.ru.md"))


@pytest.mark.parametrize("readme", ["README.md", "README.ru.md"])
def test_readmes_are_laid_out_evenly(readme: str) -> None:
    """No two empty lines in a row; lines of a paragraph are filled, and none is too long."""
    text = read(readme)
    assert "\n\n\n" not in text
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\n|\n(?=- )", plain):
        lines = paragraph.strip("\n").splitlines()
        if not lines or lines[0].startswith(("|", "!", "#")):
            continue
        assert max(map(len, lines)) <= 120, lines[0]
        for line, after in pairwise(lines):
            assert len(line) + 1 + len(after.split()[0]) > 90, line


@pytest.mark.parametrize(("readme", "words"), [("README.md", "public sets"), ("README.ru.md", "открытых наборов")])
def test_readmes_count_the_public_sets(readme: str, words: str) -> None:
    recipes = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "examples").glob("*.yaml")]
    data = [recipe["task"].get("data") for recipe in recipes if isinstance(recipe.get("task"), dict)]
    sets = {(one["hub"], one.get("config")) for one in data if isinstance(one, dict) and "hub" in one}
    assert f" {len(sets)} {words} " in read(readme)


def test_readme_commands_are_taken_apart_as_a_shell_would() -> None:
    found = commands("# a comment\nmkdir a\ncat > a/b <<'END'\nx \\\n\n# y\nEND\necho 1 \\\n  2\n")
    assert found == ["mkdir a", "cat > a/b <<'END'\nx \\\n\n# y\nEND", "echo 1 \\\n  2"]
    first = [c for language, code in blocks(read("README.md")) if language == "bash" for c in commands(code)]
    assert first[:2] == ["make demo", "make test"]
    assert all("\nEND" in c for c in first if "<<'END'" in c)


PARTS = [
    CellResources,
    Recipe,
    BaseSpec,
    BudgetSpec,
    DataSpec,
    ForgettingSpec,
    EvaluationSpec,
    TaskSpec,
    RaceSpec,
    Phrasing,
]


@pytest.mark.parametrize("part", PARTS)
def test_recipe_page_names_every_field(part: type) -> None:
    page = read("docs/recipes.md")
    for field in {*part.model_fields, *(Layout.model_fields if part is TaskSpec else ())}:  # type: ignore[attr-defined]
        assert re.search(rf"^\|[^|]*`{field}[`.]", page, re.MULTILINE), field


def test_tasks_page_names_every_metric() -> None:
    page = read("docs/tasks.md")
    for name in metric_names():
        assert re.search(rf"^\|[^|]*`{re.escape(name)}`", page, re.MULTILINE), name


def test_command_page_names_every_command_option_and_example() -> None:
    sections = {s.partition("\n")[0]: s for s in re.split(r"^## ", read("docs/cli.md"), flags=re.MULTILINE)}
    group = typer.main.get_command(app)
    found = dict(group.commands)  # type: ignore[attr-defined]
    for part in ("base", "recipe", "index", "feedback", "reward", "tokenizer"):
        found |= {f"{part} {name}": command for name, command in found.pop(part).commands.items()}
    for name, command in found.items():
        assert f"| `kamerton {name} " in sections["# Commands"], name
        for option in (o for p in command.params for o in p.opts if o.startswith("--")):
            shared = option in ("--data", "--set")  # explained once, under compare
            told = sections.get(name, "")
            assert f"`{option}`" in told or (shared and f"`{option}`" in sections["compare"]), (name, option)
        for line in (command.epilog or "").splitlines():
            if line.startswith("kamerton ") and name in sections:
                assert f"\n{line}\n" in sections[name], line


def test_every_dependency_of_the_core_is_used() -> None:
    """A package that nothing imports is only a download."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    names = [re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]]  # type: ignore[index]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    modules = {"pyyaml": "yaml", "rouge-score": "rouge_score"}
    unused = {n for n in names if not re.search(rf"^\s*(import|from) {modules.get(n, n)}\b", code, re.MULTILINE)}
    assert not unused


# -- the examples of CONTRIBUTING -------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of CONTRIBUTING under the name that it would have in the package, for one test."""
    files: dict[str, str] = {}
    for language, code in blocks(read("CONTRIBUTING.md")):
        named = re.match(r"# src/kamerton/(\S+\.py)\n", code)
        if language == "python" and named is not None:
            files[named.group(1)] = code
    loaded = []

    def load(name: str) -> ModuleType:
        room = Path(name).parent.name
        package = importlib.import_module(f"kamerton.{room}")
        folder = tmp_path / room
        folder.mkdir(exist_ok=True)
        (tmp_path / name).write_text(files[name], encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        full = f"kamerton.{name.removesuffix('.py').replace('/', '.')}"
        importlib.invalidate_caches()
        module = importlib.import_module(full)
        loaded.append((package, full))
        return module

    yield load
    for package, full in loaded:
        del sys.modules[full]
        delattr(package, full.rpartition(".")[2])


def test_the_method_of_contributing_works(
    written: Callable[[str], ModuleType], small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("methods/instruction_last.py")
    line = re.search(r'^"(instruction-last)": "(\S+)",$', read("CONTRIBUTING.md"), re.MULTILINE)
    assert line is not None
    monkeypatch.setitem(METHODS, line.group(1), line.group(2))
    method, task = get_method("instruction-last"), tiny.colour_task()
    options = parse_options(method, {"blank_lines": 2})
    adapted = method.fit(small_base, task, Budget(), options, Run(tmp_path / "fit"))
    system, user = task.test[0].messages
    (asked,) = adapted.prepare(task.test[0].messages)
    assert (asked.role, asked.content) == ("user", f"{user.content}\n\n\n{system.content}")
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    conversations, plan = [e.messages for e in task.test[:4]], Sampling(max_tokens=4)
    assert [a.tokens for a in again.generate(conversations, plan)] == [
        a.tokens for a in adapted.generate(conversations, plan)
    ]


def test_the_wrapper_of_contributing_works(
    written: Callable[[str], ModuleType], small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("methods/reading_again.py")
    line = re.search(r'^"(reading-again)": "(\S+)",$', read("CONTRIBUTING.md"), re.MULTILINE)
    assert line is not None
    monkeypatch.setitem(METHODS, line.group(1), line.group(2))
    method, task = get_method("reading-again"), tiny.colour_task()
    options = parse_options(method, {"bridge": "Again:", "over": {"lora": {"learning_rate": 0.01}}})
    adapted = method.fit(small_base, task, Budget(steps=2), options, Run(tmp_path / "fit"))
    system, user = task.test[0].messages
    assert [m.content for m in adapted.prepare((system, user))] == [
        system.content,
        f"{user.content}\nAgain:\n{user.content}",
    ]
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    asked, said = [e.messages for e in task.test[:4]], [["red", "blue"]] * 4
    assert again.score(asked, said) == adapted.score(asked, said)


def test_the_parameterisation_of_contributing_works(
    written: Callable[[str], ModuleType], small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = written("tuning/norms.py")
    module = written("methods/norms.py")
    monkeypatch.setitem(METHODS, "norms", "kamerton.methods.norms:NormsMethod")
    method: Method = get_method("norms")
    assert isinstance(method, TrainedMethod)
    assert isinstance(method, module.NormsMethod)
    task, width, layers = tiny.colour_task(), 48, 2
    assert (
        norms.Norms.attach(small_base, norms.NormsOptions(), task, 0).trainable_parameters == (2 * layers + 1) * width
    )
    fewer = norms.Norms.attach(small_base, norms.NormsOptions(last=False), task, 0)
    assert fewer.trainable_parameters == 2 * layers * width
    options = parse_options(method, {"learning_rate": 0.05, "batch_size": 8})
    adapted = method.fit(small_base, task, Budget(steps=12), options, Run(tmp_path / "fit"))
    losses = [row["loss"] for row in adapted.record.curve]
    assert losses[-1] < losses[0]
    adapted.save(tmp_path / "saved")
    again = load_adapted(tmp_path / "saved", small_base)
    asked, said = [e.messages for e in task.test[:4]], [["red", "blue"]] * 4
    assert again.score(asked, said) == adapted.score(asked, said)
    assert again.score(asked, said) != method.fit(
        small_base, task, Budget(steps=1), parse_options(method, {"learning_rate": 1e-9}), Run(tmp_path / "none")
    ).score(asked, said)


def test_the_reward_of_contributing_works(
    written: Callable[[str], ModuleType], small_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("rewards/sorted_words.py")
    line = re.search(r'^"(sorted-words)": "(\S+)",$', read("CONTRIBUTING.md"), re.MULTILINE)
    assert line is not None
    monkeypatch.setitem(REWARDS, line.group(1), line.group(2))
    task = tiny.colour_task()
    check_reward({"sorted-words": 3}, small_base, task)
    own = build_reward({"sorted-words": 3}, small_base, task)
    assert own(task.train[:3], ["a b c", "a c b", "a b"]).tolist() == [1, 0, 0]


def test_the_metric_of_contributing_works() -> None:
    (code,) = [c for language, c in blocks(read("CONTRIBUTING.md")) if language == "python" and "def contains" in c]
    names: dict[str, object] = {}
    exec(code, names)
    metric = names["METRICS"]["contains"]("contains", "", None)  # type: ignore[index]
    examples = tiny.colours(2, 0)
    answers = [f"It is {examples[0].answers[0].upper()}.", "none of them"]
    assert metric.statistics(answers, examples).tolist() == [[1.0], [0.0]]
