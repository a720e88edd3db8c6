"""Runs the commands and the Python of README.md as they stand there, after `make demo`.

`python tests/readme_commands.py` runs them in a temporary working copy: links to the repository's files, and a `runs/`
of its own in which only the demo's comparison is linked. `.venv/bin` comes first on the path and the home folder is a
temporary one too, so nothing is left behind. A command that is not run is printed with the reason. The last line is
`N passed, M failed`; the exit status is 1 where something failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600
"""Seconds that one command may take."""

QUESTION = b"Where is my parcel?\n"
"""What a chat is asked."""

_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'?(\w+)'?")


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown text that are in bash or Python: (language, code), in their order."""
    return [(match.group(1), match.group(2)) for match in _BLOCK.finditer(text)]


def commands(block: str) -> list[str]:
    """The commands of a bash block: a line, with those that a backslash or a here-document joins to it."""
    found: list[str] = []
    lines = iter(block.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines))
        here = _HEREDOC.search(line)
        if here is not None:
            while command[-1] != here.group(1):
                command.append(next(lines))
        found.append("\n".join(command))
    return found


def reason_to_skip(command: str, folder: Path) -> str | None:
    """Why a command is not run here; None where it is."""
    if command.startswith("make "):
        return "CI runs it as it stands"
    recipe = re.search(r"\bexamples/\S+\.yaml", command)
    if recipe is not None and "--data" not in command:
        text = (ROOT / recipe.group()).read_text(encoding="utf-8")
        if re.search(r"^\s*hub:", text, re.MULTILINE):
            return "it reads a data set from the hub, which needs a network"
    target = re.search(r"\bkamerton (?:chat|eval) (runs/\S+)", command)
    if target is not None and target.group(1) == "runs/dates" and not (folder / "runs/dates/results.json").is_file():
        return "make demo has not run"
    return None


def working_copy(folder: Path) -> None:
    """Links to the repository's files; what the README's commands write is not among them."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", "my-task", ".git"):
            (folder / path.name).symlink_to(path)
    (folder / "runs").mkdir()
    if (ROOT / "runs" / "dates").is_dir():
        (folder / "runs" / "dates").symlink_to(ROOT / "runs" / "dates")


def main() -> int:
    """Run all blocks; returns the exit status."""
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="kamerton-readme-") as name:
        folder, home = Path(name) / "copy", Path(name) / "home"
        folder.mkdir()
        home.mkdir()
        working_copy(folder)
        cache = os.environ.get("KAMERTON_CACHE") or str(Path.home() / ".cache" / "kamerton")
        environment = {
            **os.environ, "HOME": str(home), "KAMERTON_CACHE": cache, "HF_HUB_OFFLINE": "1", "SHELL": "/bin/bash",
            # as the command line sets it for itself: waiting threads would stall those that compute on a busy machine
            "OMP_WAIT_POLICY": "PASSIVE",
            "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        for language, code in blocks((ROOT / "README.md").read_text(encoding="utf-8")):
            for command in commands(code) if language == "bash" else [code]:
                shown = command if language == "bash" else f"python <<'END'\n{command}END"
                reason = reason_to_skip(command, folder) if language == "bash" else None
                if reason is not None:
                    print(f"$ {shown}\n  not run: {reason}", flush=True)
                    continue
                print(f"$ {shown}", flush=True)
                # the shell stays as the parent: a command may want to know which shell it was called from
                shell = ["bash", "-euo", "pipefail", "-c", f"{command}\n:"]
                program = shell if language == "bash" else ["python", "-c", code]
                started = time.monotonic()
                try:
                    # a chat reads one question and the end of its input, answers and leaves
                    status: int | str = subprocess.run(
                        program, cwd=folder, env=environment, input=QUESTION, timeout=LIMIT, check=False
                    ).returncode
                except subprocess.TimeoutExpired:
                    status = f"more than {LIMIT} s"
                if status == 0:
                    passed += 1
                    print(f"  passed in {time.monotonic() - started:.0f} s\n", flush=True)
                else:
                    failed += 1
                    print(f"  FAILED: {status}\n", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
