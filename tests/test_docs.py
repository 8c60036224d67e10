"""What the documents say is true: every example is run, and what they show as its result is what comes out.

A comment right before a block tells how to run it; several are separated by a semicolon::

    <!-- not run: why -->                 it cannot be run here
    <!-- continues -->                    together with the block before it: one namespace, one directory, one server
    <!-- file: example.py -->             Python that is saved as well
    <!-- raises: UnknownSetting: ... -->  Python that ends with this error
    <!-- exit status: 2 -->               of the last command; 0 where nothing is said
    <!-- until: some text -->             the last command goes on until it is stopped when it has printed this
    <!-- log of a worker -->              lines that it has among others: see test_operations.py
    <!-- output of a worker -->           text that a worker prints that runs the app of the block before it;
                                          ``, in any order`` may follow

or, instead of a block, says what becomes of the app of the block before it::

    <!-- a worker prints: this, that -->
    <!-- a worker halts: ValueError: why -->

Addresses of a server on this machine are replaced by that of the test's own. Ids of entries may differ.
"""

import ast
import asyncio
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import runnel
from harness import eventually, run_to_end, running
from program import PATIENCE, Running, environment
from runnel import App, admin, errors, interfaces, middleware, server
from runnel.observability import user_traceback
from runnel.server import EmbeddedServer
from runnel.settings import Settings

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("guide", "architecture", "performance", "tracing")),
]
PAGES = [
    *DOCUMENTS,
    *(ROOT / "docs" / f"{name}.md" for name in ("operations", "metrics", "faults", "reliability", "scaling")),
    ROOT / "deploy" / "README.md",
]
"""With those that other tests play."""

DIRECTIVE = re.compile(
    r"(continues|file|not run|raises|exit status|until|output of a worker(?:, in any order)?|log of a worker"
    r"|a worker prints|a worker halts)(?:: (.+))?"
)
SHELLS = ("bash", "console", "sh", "shell")
PROGRAMS = ("runnel", "echo")
"""What a block may run. Anything else could do harm to who runs the tests, or takes the network."""

ADDRESS = re.compile(r"redis://127\.0\.0\.1:6379|redis://127\.0\.0\.1(?=\")")
ENTRY_ID = re.compile(r"\b\d{13}-\d+\b")


@dataclass(frozen=True)
class Block:
    """A block of a document."""

    document: str
    line: int
    language: str
    source: str
    directives: dict[str, str]

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    """The blocks of a document, with the directives in front of them."""
    lines = iter(enumerate(path.read_text().splitlines(), 1))
    pending: dict[str, str] = {}
    for number, line in lines:
        if comment := re.fullmatch(r"<!-- (.*) -->", line):
            assert not pending, f"{path.name}:{number}: the comment before this one belongs to no block"
            for part in re.split(r"; ", comment[1]):
                matched = DIRECTIVE.fullmatch(part)
                assert matched, f"{path.name}:{number}: unknown directive {part!r}"
                pending[matched[1]] = matched[2] or ""
            if any(name.startswith("a worker") for name in pending):
                yield Block(path.name, number, "worker", "", pending)
                pending = {}
        elif fence := re.fullmatch(r"```(\w*)", line):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            yield Block(path.name, number, fence[1], "\n".join(body) + "\n", pending)
            pending = {}
        else:
            assert not pending or not line, f"{path.name}:{number}: the comment before belongs to no block"


def examples() -> list[list[Block]]:
    """Blocks that are run together."""
    found: list[list[Block]] = []
    for path in DOCUMENTS:
        for block in blocks_of(path):
            if "not run" in block.directives:
                continue
            if block.language == "worker" or "continues" in block.directives or _is_output(block):
                found[-1].append(block)
            elif block.language in ("python", *SHELLS):
                found.append([block])
    return found


def _is_output(block: Block) -> bool:
    return any(name.startswith("output") for name in block.directives)


class Stage:
    """Where an example runs: a directory, a server, a namespace and an event loop."""

    def __init__(
        self, directory: Path, variables: dict[str, str], url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._directory = directory
        self._variables = variables
        self._url = url
        self._capsys = capsys
        self._namespace: dict[str, Any] = {"__name__": "example"}
        self._started = 0

    def localised(self, source: str) -> str:
        """With the address of our server."""
        return ADDRESS.sub(self._url, source)

    async def play(self, block: Block) -> None:
        """Run a block, and compare the result with what it says."""
        if block.language == "worker" or _is_output(block):
            await self._work(block)
        elif block.language == "python":
            await self._execute(block)
        else:
            await asyncio.to_thread(self._command, block)

    async def close(self) -> None:
        for app in self._apps():
            await app.aclose()

    # Python

    async def _execute(self, block: Block) -> None:
        source = self.localised(block.source)
        if name := block.directives.get("file"):
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        moved = "\n" * block.line + source  # so that a traceback names the line of the document
        code = compile(moved, block.document, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        expected, raised = block.directives.get("raises"), None
        try:
            result = eval(code, self._namespace)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            if expected is None:
                raise
            raised = f"{type(error).__name__}: {error}"
        assert raised == expected, block

    def _apps(self) -> list[App]:
        return [value for value in self._namespace.values() if isinstance(value, App)]

    async def _work(self, block: Block) -> None:
        (app,) = self._apps()
        self._capsys.readouterr()
        if message := block.directives.get("a worker halts"):
            status, worker = await run_to_end(app)
            assert status == 1
            assert worker.failure is not None
            assert user_traceback(worker.failure).endswith(message)
            return
        exact = "a worker prints" not in block.directives
        expected = block.source.splitlines() if exact else block.directives["a worker prints"].split(", ")
        printed: list[str] = []

        def everything() -> bool:
            printed.extend(self._capsys.readouterr().out.splitlines())
            return len(printed) >= len(expected) if exact else set(expected) <= set(printed)

        async with running(app):
            await eventually(everything, PATIENCE)
        printed.extend(self._capsys.readouterr().out.splitlines())
        if not exact:
            assert set(printed) == set(expected), block
        elif "output of a worker, in any order" in block.directives:
            assert sorted(printed) == sorted(expected), block
        else:
            assert printed == expected, block

    # Commands

    def _command(self, block: Block) -> None:
        commands = commands_of(block)
        for number, (command, expected) in enumerate(commands, 1):
            last = number == len(commands)
            words = ["bash", "-c", f"exec {command}" if last and "until" in block.directives else command]
            if last and "until" in block.directives:
                self._started += 1
                started = Running(words, self._directory, self._variables, self._started)
                try:
                    started.says(block.directives["until"])
                    assert started.stop() == int(block.directives.get("exit status", 0)), block
                finally:
                    started.process.kill()
                    started.process.wait()
                continue
            ended = subprocess.run(
                words,
                cwd=self._directory,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            status = int(block.directives.get("exit status", 0)) if last else 0
            assert (ended.returncode, alike(ended.stdout)) == (status, alike(expected)), f"{block}: {command}"


def alike(output: str) -> str:
    """Without what differs from time to time, which is also how wide the columns of ids are."""
    return "\n".join(" ".join(line.split()) for line in ENTRY_ID.sub("ID", output).splitlines())


def commands_of(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with its output."""
    commands: list[tuple[str, str]] = []
    for line in block.source.splitlines(keepends=True):
        if line.startswith("$ "):
            commands.append((line[2:].strip(), ""))
        elif commands and commands[-1][0].endswith("\\"):
            commands[-1] = (commands[-1][0].removesuffix("\\") + line.strip(), "")
        else:
            assert commands, f"{block} does not begin with a command"
            commands[-1] = (commands[-1][0], commands[-1][1] + line)
    return commands


@pytest.mark.parametrize("example", examples(), ids=lambda example: str(example[0]))
def test_an_example_does_what_the_document_says(
    example: list[Block],
    server_binary: str | Path | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with EmbeddedServer(binary=server_binary) as server:
        variables = environment(server.url, "unused", server_binary, tmp_path)
        scripts = str(Path(sys.executable).parent)
        variables["PATH"] = f"{scripts}{os.pathsep}{variables['PATH']}"
        for name in [name for name in os.environ if name.startswith("RUNNEL_")]:
            monkeypatch.delenv(name)
        for name in ("PATH", "RUNNEL_REDIS_URL"):
            monkeypatch.setenv(name, variables[name])
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        before = set(sys.modules)
        stage = Stage(tmp_path, variables, server.url, capsys)

        async def play() -> None:
            try:
                for block in example:
                    await stage.play(block)
            finally:
                await stage.close()

        try:
            asyncio.run(play())
        finally:
            for name in set(sys.modules) - before:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                    del sys.modules[name]


def test_the_readmes_example_works_as_it_stands_there(
    redis_url: str, server_binary: str | Path | None, tmp_path: Path
) -> None:
    """Its commands are marked as not to be run, because they go on: here they are run, but for the pip."""
    blocks = list(blocks_of(DOCUMENTS[0]))
    (source,) = (block.source for block in blocks if block.language == "python" and "App(" in block.source)
    (send,) = (block for block in blocks if block.source.startswith("$ runnel send"))
    with EmbeddedServer(binary=server_binary) as server:
        (tmp_path / "example.py").write_text(ADDRESS.sub(server.url, source))
        variables = environment(server.url, "unused", server_binary, tmp_path)
        command = [sys.executable, "-m", "runnel", "dev", "example:app"]
        dev = Running(command, tmp_path, variables, 0)
        try:
            dev.says("partitions assigned")
            ((line, _),) = commands_of(send)
            sending = [sys.executable, "-m", *shlex.split(line)]
            subprocess.run(sending, cwd=tmp_path, env=variables, check=True, timeout=PATIENCE, capture_output=True)
            dev.says("ann has ordered for 9.99")
            assert dev.stop() == 0
        finally:
            dev.process.terminate()
            dev.process.wait(PATIENCE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_block_is_run_or_says_why_not(path: Path) -> None:
    for block in blocks_of(path):
        if block.directives.get("not run"):
            continue
        assert "not run" not in block.directives, f"{block}: say why it is not run"
        if block.language in SHELLS:
            for command, _ in commands_of(block):
                program = shlex.split(command)[0]
                assert program in PROGRAMS, f"{block} runs {program}: mark it, <!-- not run: why -->"
        elif block.language == "text":
            assert _is_output(block) or "log of a worker" in block.directives, f"{block} shows output of what?"
        else:
            assert block.language in ("python", "worker", "toml", ""), f"{block}: {block.language} is never run"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_inside_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings], target


def test_the_table_of_settings_is_complete_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RUNNEL_")]:
        monkeypatch.delenv(name)
    table = (ROOT / "docs" / "guide.md").read_text().partition("\n## Settings\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) ?\| (.+) \|$", table, re.MULTILINE)
    assert [row[0] for row in rows] == list(Settings.model_fields)
    defaults = Settings(name="any")
    homes = {"stream": inspect.signature(App.stream), "processor": inspect.signature(App.processor)}
    homes["crontab"] = inspect.signature(App.crontab)
    for name, shown, also, _ in rows:
        if name == "name":
            continue
        value = getattr(defaults, name)
        words = {"hasher": "xxh64", "serializer": "JSON"}
        plain = "none" if value is None else f"`{getattr(value, 'value', value)}`"
        assert shown == words.get(name, plain), name
        assert also == ", ".join(home for home, signature in homes.items() if name in signature.parameters), name


# What help() shows


def _explainable() -> Iterator[tuple[str, Any]]:
    """Public functions, classes, and their public methods, by name."""
    for module in (runnel, admin, errors, interfaces, middleware, server):
        for name in module.__all__:
            public = getattr(module, name)
            yield f"{module.__name__}.{name}", public
            if inspect.isclass(public):
                for method, function in vars(public).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{module.__name__}.{name}.{method}", function


EXPLAINABLE = dict(_explainable()) | {"runnel.settings.Settings": Settings}


@pytest.mark.parametrize("name", EXPLAINABLE)
def test_help_explains_every_argument_and_attribute_of_a_public_name(name: str) -> None:
    public = EXPLAINABLE[name]
    doc = public.__doc__ or ""
    assert doc.strip()
    if public is Settings:
        wanted = list(Settings.model_fields)
    elif dataclasses.is_dataclass(public):
        wanted = [field.name for field in dataclasses.fields(public) if field.repr]
    elif inspect.isfunction(public):
        wanted = [argument for argument in inspect.signature(public).parameters if argument not in ("self", "kwargs")]
        if re.search(r"[Aa]rguments( and errors)? as :|As :meth:", doc):
            return
    else:
        return
    assert [one for one in wanted if not re.search(rf"\b{one}\b(:|`)", doc)] == []
