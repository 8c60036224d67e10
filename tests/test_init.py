"""``runnel init``: the project that it writes is tested as its owner would, with the real program."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from program import PATIENCE, Running, environment
from runnel import __version__
from runnel.server.address import free_port

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "src" / "runnel" / "project" / "template"

FILES = [
    ".dockerignore",
    ".gitignore",
    "Dockerfile",
    "README.md",
    "compose.yaml",
    "my_shop.py",
    "pyproject.toml",
    "tests/test_my_shop.py",
]


class Place:
    """A directory for projects, and commands that run in it."""

    def __init__(self, directory: Path, variables: dict[str, str]) -> None:
        self.directory = directory
        self.variables = variables
        self.started: list[Running] = []

    def run(self, *words: str, within: str = ".") -> "subprocess.CompletedProcess[str]":
        """``python -m ...`` in a directory, to its end."""
        return subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.directory / within,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def start(self, *words: str, within: str) -> Running:
        """``python -m ...`` in a directory, until it is stopped."""
        command = [sys.executable, "-m", *words]
        self.started.append(Running(command, self.directory / within, self.variables, len(self.started)))
        return self.started[-1]

    def files(self, within: str) -> list[str]:
        top = self.directory / within
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


@pytest.fixture
def place(server_binary: str | Path | None, tmp_path: Path) -> Iterator[Place]:
    url = f"redis://127.0.0.1:{free_port('127.0.0.1')}"  # where nobody answers, as on the machine of a beginner
    made = Place(tmp_path, environment(url, "unused", server_binary, tmp_path))
    yield made
    for running in made.started:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(PATIENCE)


@pytest.mark.processes
def test_the_projects_own_test_passes(place: Place) -> None:
    assert place.run("runnel", "init", "my-shop").returncode == 0
    tested = place.run("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", within="my-shop")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "1 passed" in tested.stdout


@pytest.mark.processes
def test_the_steps_that_it_prints_work(place: Place) -> None:
    shown = place.run("runnel", "init", "my-shop")
    assert (shown.returncode, shown.stdout) == (0, "")
    steps = [line.strip() for line in shown.stderr.partition("Next:\n")[2].splitlines() if line.startswith("  ")]
    assert steps[0] == "cd my-shop"
    assert "runnel dev" in steps
    dev = place.start("runnel", "dev", within="my-shop")
    dev.says("partitions assigned")
    (send,) = (step for step in steps if step.startswith("runnel send"))
    program = Path(sys.executable).parent / "runnel"
    sent = subprocess.run(
        ["bash", "-c", send.replace("runnel", str(program), 1)],
        cwd=place.directory / "my-shop",
        env=place.variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    dev.says("order 1: 9.99 for ann")
    assert place.run("runnel", "status", within="my-shop").returncode == 0
    assert dev.stop() == 0


def test_everything_is_called_like_the_directory(place: Place) -> None:
    shown = place.run("runnel", "init", "somewhere/My-Shop")
    assert shown.returncode == 0
    assert shown.stderr.startswith("Created my_shop:\n")
    assert place.files("somewhere/My-Shop") == FILES
    for path in FILES:
        assert "myproject" not in (place.directory / "somewhere" / "My-Shop" / path).read_text()
    project = tomllib.loads((place.directory / "somewhere/My-Shop/pyproject.toml").read_text())
    assert project["project"]["name"] == "my_shop"
    assert project["tool"]["runnel"]["app"] == "my_shop:app"


def test_without_a_directory_it_is_the_one_we_are_in(place: Place) -> None:
    (place.directory / "my_shop" / ".git").mkdir(parents=True)
    shown = place.run("runnel", "init", within="my_shop")
    assert shown.returncode == 0
    assert place.files("my_shop") == FILES
    assert "  cd " not in shown.stderr


# What it refuses


@pytest.mark.parametrize("there", ["README.md", "src/app.py", ".gitignore", "notes"])
def test_a_directory_with_something_in_it_is_left_alone(place: Place, there: str) -> None:
    file = place.directory / "my-shop" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    ended = place.run("runnel", "init", "my-shop")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f'"my-shop" is not empty: it has {there.partition("/")[0]}. Nothing was written.' in ended.stderr
    assert place.files("my-shop") == [there]
    assert file.read_text() == "mine"


def test_a_second_time_changes_nothing(place: Place) -> None:
    assert place.run("runnel", "init", "my-shop").returncode == 0
    app = place.directory / "my-shop" / "my_shop.py"
    app.write_text("mine")
    ended = place.run("runnel", "init", "my-shop")
    assert ended.returncode == 2
    assert "it has .dockerignore, .gitignore, Dockerfile and 5 more." in ended.stderr
    assert app.read_text() == "mine"


def test_a_file_is_no_directory(place: Place) -> None:
    (place.directory / "my-shop").write_text("mine")
    for name, message in {"my-shop": '"my-shop" is a file', "my-shop/inner": 'Cannot write to "my-shop/inner"'}.items():
        ended = place.run("runnel", "init", name)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("2024", "begins with a letter"),
        ("größe", "letters from a to z"),
        ("a:b", "letters from a to z"),
        ("--", "letters from a to z"),
        ("class", "a word of Python's own"),
        ("queue", 'there is another module "queue"'),
        ("pydantic", 'there is another module "pydantic"'),
        ("runnel", 'there is another module "runnel"'),
        ("tests", 'there is another module "tests"'),
    ],
)
def test_a_name_that_no_module_can_have_is_refused_before_anything_is_written(
    place: Place, name: str, why: str
) -> None:
    ended = place.run("runnel", "init", "--", name)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: ")
    assert f'A project cannot be called "{name}"' in ended.stderr
    assert why in ended.stderr
    assert "runnel init my-shop" in ended.stderr
    assert not (place.directory / name).exists()


# The files that nothing runs here


def test_what_the_project_requires_is_what_this_version_offers() -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    words = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    required = [requirement for requirement in map(Requirement, words) if requirement.name == "runnel"]
    assert len(required) == 2
    for requirement in required:
        assert requirement.extras <= set(ours["optional-dependencies"])
        assert requirement.specifier.contains(__version__)
    assert project["requires-python"] == ours["requires-python"]


def test_in_containers_two_workers_get_the_signals_and_enough_time_and_are_not_root() -> None:
    instructions = re.findall(r"^([A-Z]+) (.+)$", (TEMPLATE / "Dockerfile").read_text(), re.MULTILINE)
    assert instructions[-1] == ("CMD", '["runnel", "worker", "--log-format", "json"]')
    assert instructions[-2] == ("USER", "10001:10001")
    services = yaml.safe_load((TEMPLATE / "compose.yaml").read_text())["services"]
    assert set(services) == {"valkey", "worker"}
    worker = services["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert worker["environment"]["RUNNEL_REDIS_URL"] == "redis://valkey:6379"
    assert int(worker["stop_grace_period"].removesuffix("s")) > 30
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}
    assert "--maxmemory-policy noeviction" in services["valkey"]["command"]
    assert "--appendonly yes" in services["valkey"]["command"]


def test_what_tests_and_tools_leave_behind_is_ignored(place: Place) -> None:
    assert place.run("runnel", "init", "my-shop").returncode == 0
    top = place.directory / "my-shop"
    for name in (".venv/x", "__pycache__/x.pyc", ".pytest_cache/x", "tests/__pycache__/x.pyc"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", "init", "-q"], cwd=top, env=variables, check=True)
    listed = subprocess.run(
        ["git", "status", "--short", "-uall"], cwd=top, env=variables, check=True, capture_output=True, text=True
    )
    assert sorted(line[3:] for line in listed.stdout.splitlines()) == FILES
