"""The program, as its users run it: real processes, their output, their exit status. The commands that run on and on
are in ``test_cli_running.py``."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from program import PATIENCE, Project, environment
from runnel._redis.link import Endpoint
from runnel._redis.refusals import NEEDED
from runnel.cli import app
from runnel.server import EmbeddedServer


@pytest.fixture
def project(redis_url: str, app_name: str, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path, environment(redis_url, app_name, server_binary, tmp_path))
    yield made
    made.close()


HELP = [
    (
        "",
        [
            *(
                "init",
                "worker",
                "dev",
                "send",
                "sendmany",
                "tail",
                "status",
                "lag",
                "doctor",
                "server",
                "demo",
                "bench",
            ),
            *("processor", "quarantine", "dead"),
        ],
    ),
    ("init", ["DIR", "Nothing is overwritten"]),
    ("worker", ["--processors", "--log-level", "--log-format", "--redis-url", "130 aborted"]),
    ("dev", ["--processors", "--reload", "--log-level"]),
    ("send", ["STREAM", "--redis-url"]),
    ("sendmany", ["--on-error", "--rate", "--dry-run", "FILE.rejected"]),
    ("server", ["--port", "--unix", "--data"]),
    ("demo", ["killed"]),
    ("bench", ["--rounds", "--quick", "--check", "--json", "--embedded", "--redis-url"]),
    ("tail", ["STREAM", "--follow", "--number", "--from", "--partition", "--key", "--json"]),
    ("status", ["TARGET", "--watch", "--json"]),
    ("lag", ["--fail-over", "--watch", "--json"]),
    ("doctor", ["--json", "Exit status 1"]),
    ("processor", ["reset", "pause", "resume", "delete", "acknowledge"]),
    (
        "processor reset",
        [
            *("PROCESSOR", "--start", "--to-earliest", "--to-latest", "--to-datetime", "--by-duration", "--shift-by"),
            *("--partition", "--execute", "--json"),
        ],
    ),
    ("processor pause", ["PROCESSOR", "--redis-url"]),
    ("processor resume", ["PROCESSOR"]),
    ("processor delete", ["PROCESSOR", "--execute", "--json"]),
    ("processor acknowledge", ["--partition", "--json"]),
    ("quarantine", ["list", "show", "retry", "skip"]),
    ("quarantine list", ["TARGET", "--watch", "--json"]),
    ("quarantine show", ["PROCESSOR", "--partition", "--json"]),
    ("quarantine retry", ["--partition"]),
    ("quarantine skip", ["--partition", "--json"]),
    ("dead", ["list", "show", "replay", "purge"]),
    ("dead list", ["STREAM", "--json"]),
    ("dead show", ["LETTER", "--json"]),
    ("dead replay", ["LETTER", "--execute", "--json", "AFTER"]),
    ("dead purge", ["LETTER", "--execute", "--json"]),
]


@pytest.mark.parametrize(("command", "words"), HELP, ids=[command or "runnel" for command, _ in HELP])
def test_each_command_explains_itself(command: str, words: list[str]) -> None:
    # Not as a process of its own, of which there would be too many: these only print.
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "120"})
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert [word for word in words if word not in shown.stdout] == []


def test_the_version_is_shown(project: Project) -> None:
    shown = project.run("--version")
    assert (shown.returncode, shown.stdout) == (0, "Runnel 0.1.0\n")


def test_a_misspelt_command_is_answered_with_the_nearest(project: Project) -> None:
    ended = project.run("wroker")
    assert ended.returncode == 2
    assert "Did you mean 'worker'?" in ended.stderr


# Targets that lead nowhere

SOURCES = {
    "broken": "def f(:\n",
    "needy": "import nothing_of_that_name\n",
    "leaving": "import sys\n\nsys.exit(3)\n",
    "failing": "def prepare():\n    raise KeyError('db')\n\nprepare()\n",
    "two": "from runnel import App\n\nfirst = App('first')\nsecond = App('second')\n",
    "none": "x = 1\n",
    "deep/inner": "from runnel import App\n\nthing = App('thing')\n",
}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("shpo:app", 'There is no module "shpo"'),
        ("shpo:app", 'Did you mean "shop"?'),
        ("shop:ap", '"shop" has no "ap". Did you mean "app"? It has: shop:app.'),
        ("shop:orders", '"shop:orders" is a Stream; `runnel worker` needs an App. Try: runnel worker shop:app'),
        ("shop:printer", '"shop:printer" is a processor; `runnel worker` needs an App.'),
        ("shop:Order", "`runnel worker` needs an App. Try: runnel worker shop:app"),
        ("shop.py", '"shop.py" is a path; a target is a module and an attribute. Try: runnel worker shop:app'),
        ("./shop.py:app", "Try: runnel worker shop:app"),
        ("deep/inner.py:thing", "Try: runnel worker deep.inner:thing"),
        ("two", "say which:\n  runnel worker two:first\n  runnel worker two:second"),
        ("none", '"none" has nothing that is an App'),
        (":app", "The target has no module. It looks like this: example:app"),
        ("", "The target has no module. It looks like this: example:app"),
    ],
)
def test_a_wrong_target_is_explained(project: Project, target: str, message: str) -> None:
    project.write(**SOURCES)
    ended = project.run("worker", target)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: ")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("target", "ending", "frames"),
    [
        ("broken:app", "SyntaxError: invalid syntax", 0),
        ("needy:app", "ModuleNotFoundError: No module named 'nothing_of_that_name'", 1),
        ("leaving:app", "SystemExit: 3", 1),
        ("failing:app", "KeyError: 'db'", 2),
    ],
)
def test_an_error_in_the_users_module_is_shown_with_their_lines_and_none_of_ours(
    project: Project, target: str, ending: str, frames: int
) -> None:
    project.write(**SOURCES)
    ended = project.run("worker", target)
    assert ended.returncode == 2
    module = target.partition(":")[0]
    assert f'Error: "{module}" cannot be imported:\n' in ended.stderr
    assert ended.stderr.rstrip().endswith(ending)
    assert f"{module}.py" in ended.stderr
    assert ended.stderr.count(", in ") == frames
    assert "importlib" not in ended.stderr
    assert "runnel/cli" not in ended.stderr


def test_without_a_target_the_message_says_how_to_name_one(project: Project) -> None:
    ended = project.run("worker")
    assert ended.returncode == 2
    assert "runnel worker example:app" in ended.stderr
    assert "RUNNEL_APP" in ended.stderr
    assert "[tool.runnel]" in ended.stderr


@pytest.mark.parametrize("content", ["[tool.runnel", "[tool]\nrunnel = 3", "[tool.runnel]\napp = 3", b"\xff"])
def test_a_useless_pyproject_is_named(project: Project, content: str | bytes) -> None:
    (project.directory / "pyproject.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = project.run("worker")
    assert ended.returncode == 4
    assert "pyproject.toml" in ended.stderr
    assert "Traceback" not in ended.stderr


# Apps that do not fit together

APP = "from runnel import App, Record, ExceptionPolicy\n\n\nclass Order(Record):\n    order_id: int\n\n\n"
STREAM = 'app = App("x")\norders = app.stream("orders", record=Order, partition_by="order_id")\n\n\n'
PROCESSOR = "@app.processor(orders)\nasync def same(events): ...\n"


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        (f'{APP}app = App("x", log_levl="debug")', 'Unknown setting "log_levl". Did you mean "log_level"?', 8),
        (f'{APP}app = App("x", log_level="loud")', "log_level = 'loud': Input should be 'debug', 'info'", 8),
        (f'{STREAM}@app.crontab("99 * * * *")\nasync def f(): ...', '"99 * * * *" is not a valid cron expression', 0),
        (f"{STREAM}{PROCESSOR}\n\n{PROCESSOR}", 'two processors named "same"', 0),
        (f"{STREAM}@app.processor(orders)\ndef plain(events): ...", "must be an async function", 0),
        (f"{STREAM}@app.processor(app)\nasync def f(events): ...", "@app.processor needs a stream", 0),
        (
            'app = App("x")\norders = app.stream("o", record=Order, partition_by="order")',
            'Order has no such field. Did you mean "order_id"?',
            9,
        ),
        (
            "class Flat(Record, primitive=True):\n    items: list[Order]\n",
            'The primitive record Flat cannot have the field "items" of type list[wrong.Order]: Redis stores flat',
            8,
        ),
    ],
)
def test_an_app_that_does_not_fit_together_is_refused_with_the_place(
    project: Project, source: str, message: str, line: int
) -> None:
    if not source.startswith(APP):
        source = APP + source
    project.write(wrong=source)
    ended = project.run("worker", "wrong:app")
    assert ended.returncode == 4
    assert message in ended.stderr
    place = f"\n  at {project.directory / 'wrong.py'}, line "
    assert f"{place}{line or ''}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_pattern_that_finds_no_module_is_refused(project: Project) -> None:
    project.write(wide='from runnel import App\n\napp = App("wide", autodiscover="myproj/**/streams.py")\n')
    ended = project.run("worker", "wide:app")
    assert ended.returncode == 4
    assert 'autodiscover="myproj/**/streams.py" matches no Python file in' in ended.stderr
    assert str(project.directory) in ended.stderr


@pytest.mark.parametrize(
    ("names", "status", "message"),
    [
        ("printer,countre", 4, 'has no processor "countre". Did you mean "counter"? It has: printer, counter.'),
        (",", 2, "The app has: printer, counter."),
    ],
)
def test_a_processor_that_the_app_does_not_have_is_refused(
    project: Project, names: str, status: int, message: str
) -> None:
    ended = project.run("worker", "shop:app", "--processors", names)
    assert ended.returncode == status
    assert message in ended.stderr


def test_another_partition_count_than_the_stored_one_is_refused(project: Project) -> None:
    project.send(1)
    source = (project.directory / "shop.py").read_text()
    project.write(shop=source.replace("partition_count=4", "partition_count=8"))
    for command in (
        ["worker", "shop:app"],
        ["send", "shop:orders", '{"order_id": 2}'],
        ["processor", "reset", "shop:printer", "--start", "0"],
    ):
        ended = project.run(*command)
        assert ended.returncode == 4
        assert 'Stream "orders" has 4 partitions in Redis, but this process says 8.' in ended.stderr
        assert "Use partition_count=4" in ended.stderr


# No server


@pytest.mark.parametrize(
    "command",
    [
        ["worker", "shop:app"],
        ["processor", "reset", "shop:printer", "--start", "0"],
    ],
    ids=["worker", "reset"],
)
def test_without_a_server_the_message_says_how_to_get_one(project: Project, command: list[str]) -> None:
    ended = project.run(*command, RUNNEL_REDIS_URL="redis://ann:secret@127.0.0.1:1")
    assert ended.returncode == 3
    assert "Cannot reach redis://ann:***@127.0.0.1:1 (connection refused)." in ended.stderr
    assert "runnel server" in ended.stderr
    assert "RUNNEL_REDIS_URL" in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_sending_without_a_server_gives_up_after_the_send_timeout(project: Project) -> None:
    ended = project.run(
        *("send", "shop:orders", '{"order_id": 1}', "--redis-url", "redis://127.0.0.1:1"), RUNNEL_SEND_TIMEOUT="0.2"
    )
    assert ended.returncode == 3
    assert "Cannot reach redis://127.0.0.1:1 (connection refused)." in ended.stderr


def test_an_address_that_is_none_is_refused_without_its_password(project: Project) -> None:
    ended = project.run("worker", "shop:app", "--redis-url", "http://ann:secret@example.org")
    assert ended.returncode == 4
    assert "is not a Redis URL" in ended.stderr
    assert "secret" not in ended.stderr


def test_a_user_who_may_not_do_it_is_told_what_to_allow_and_nobody_sees_the_password(
    project: Project, server_binary: str | Path | None
) -> None:
    with EmbeddedServer(binary=server_binary) as secured:
        asyncio.run(_allow(secured.url, "reader", "~*", "+@read", "+@connection"))
        asyncio.run(_allow(secured.url, "runnel", *NEEDED.split()[2:]))

        def run(*command: str, user: str) -> tuple[int, str]:
            url = secured.url.replace("redis://", f"redis://{user}@" if user else "redis://")
            ended = project.run(*command, RUNNEL_REDIS_URL=url, RUNNEL_SEND_TIMEOUT="1")
            assert "secret" not in ended.stdout + ended.stderr
            assert "Traceback" not in ended.stderr
            return ended.returncode, ended.stderr

        for command in (["status", "shop:app"], ["send", "shop:orders", '{"order_id": 1}'], ["worker", "shop:app"]):
            status, said = run(*command, user="reader:secret")
            assert status == 4
            assert "redis://reader:***@" in said
            assert f"ACL SETUSER NAME {NEEDED}" in said
            status, said = run(*command, user="reader:secret-not")
            assert status == 3
            assert "refused the user or password" in said
            assert "redis://USER:PASSWORD@HOST:PORT" in said
        assert run("send", "shop:orders", '{"order_id": 1}', user="runnel:secret") == (0, "")
        assert run("worker", "shop:app", "--burst", user="runnel:secret")[0] == 0, "what is said to be needed is enough"
        asyncio.run(_allow(secured.url, "default"))
        for command in (["status", "shop:app"], ["send", "shop:orders", '{"order_id": 1}'], ["worker", "shop:app"]):
            status, said = run(*command, user="")
            assert (status, "refused the user or password" in said) == (3, True), said


def test_a_server_that_is_full_says_what_to_do_and_how_far_a_file_was_sent(
    project: Project, server_binary: str | Path | None
) -> None:
    (project.directory / "data.jsonl").write_text("".join(f'{{"order_id": {n}}}\n' for n in range(1_000)))
    with EmbeddedServer(binary=server_binary, extra=["--maxmemory", "1"]) as full:
        variables = {"RUNNEL_REDIS_URL": full.url, "RUNNEL_SEND_TIMEOUT": "0.5"}
        ended = project.run("sendmany", "shop:orders", "data.jsonl", **variables)
    assert ended.returncode == 3
    first, last = ended.stderr.splitlines()
    assert first == "Not finished: 0 events sent, up to line 0, and perhaps some up to line 1,000."
    assert "cannot serve now: OOM" in last
    assert "raise maxmemory" in last


def test_a_database_that_there_is_not_is_named(project: Project, server_binary: str | Path | None) -> None:
    with EmbeddedServer(binary=server_binary) as other:
        ended = project.run("status", "shop:app", "--redis-url", url := f"{other.url}/99")
    assert ended.returncode == 4
    assert f"{url} has no such database." in ended.stderr


def test_a_key_of_somebody_else_is_named(project: Project) -> None:
    project.send(1)
    key = f"runnel:{{{project.environment['TEST_APP']}/orders}}:meta"

    async def replace() -> None:
        link = Endpoint(project.environment["RUNNEL_REDIS_URL"]).link()
        await link.call("DEL", key)
        await link.call("SET", key, "mine")
        await link.close()

    asyncio.run(replace())
    for command in (["status", "shop:app"], ["send", "shop:orders", '{"order_id": 1}']):
        ended = project.run(*command)
        assert ended.returncode == 1
        assert f'has something else under "{key}"' in ended.stderr
        assert "Traceback" not in ended.stderr


async def _allow(url: str, user: str, *rules: str) -> None:
    link = Endpoint(url).link()
    await link.call("ACL", "SETUSER", user, "on", ">secret", *rules)
    await link.close()


# send


def test_send_prints_the_id_and_nothing_else(project: Project) -> None:
    sent = project.run("send", "shop:orders", '{"order_id": 1, "amount": 9.99}')
    assert (sent.returncode, sent.stderr) == (0, "")
    milliseconds, _, sequence = sent.stdout.strip().partition("-")
    assert milliseconds.isdigit()
    assert sequence == "0"


def test_send_reads_the_value_from_stdin(project: Project) -> None:
    first = project.run("send", "shop:orders", "-", stdin='{"order_id": 1}\n')
    assert first.returncode == 0
    assert project.waiting("printer") == 1


def test_send_takes_the_only_stream_of_a_module(project: Project) -> None:
    assert project.run("send", "shop", '{"order_id": 1}').returncode == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            '{"order_id": 1, "amuont": 9.99}',
            'Order:\n  amount          field required (you sent "amuont"; did you mean "amount"?)',
        ),
        ('{"order_id": "x", "amount": 1}', "(you sent 'x')"),
        ("[1]", "Input should be an object (you sent [1])"),
        ('{"order_id": 1', "The value is not valid JSON"),
        ("", "It should be an object with order_id, amount, note."),
    ],
)
def test_a_value_that_does_not_fit_is_explained_and_not_sent(project: Project, value: str, message: str) -> None:
    project.strict()
    ended = project.run("send", "shop:orders", value)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert project.waiting("printer") == 0


def test_send_needs_a_stream(project: Project) -> None:
    ended = project.run("send", "shop:app", "{}")
    assert ended.returncode == 2
    assert "`runnel send` needs a Stream. Try: runnel send shop:orders" in ended.stderr


# sendmany


def test_many_lines_are_sent(project: Project) -> None:
    lines = "".join(f'{{"order_id": {n}, "amount": 1}}\n' for n in range(2500))
    (project.directory / "data.jsonl").write_text(lines)
    ended = project.run("sendmany", "shop:orders", "data.jsonl")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr == "2,500 events sent.\n"
    assert project.waiting("printer") == 2500


def test_bad_lines_are_reported_and_kept_and_the_good_ones_sent(project: Project) -> None:
    project.strict()
    data = project.directory / "data.jsonl"
    data.write_text(
        '{"order_id": 1, "amount": 1}\nnonsense\n\n{"order_id": 2, "amuont": 1}\n{"order_id": 3, "amount": 1}'
    )
    ended = project.run("sendmany", "shop:orders", "data.jsonl")
    assert ended.returncode == 1
    assert "line 2: The value is not valid JSON" in ended.stderr
    assert 'line 4: The value does not fit Order: amount field required (you sent "amuont"; did you' in ended.stderr
    assert ended.stderr.endswith("2 events sent.\n2 bad lines, see data.jsonl.rejected.\n")
    rejected = [json.loads(line) for line in (project.directory / "data.jsonl.rejected").read_text().splitlines()]
    assert [(item["line"], item["value"]) for item in rejected] == [
        (2, "nonsense"),
        (4, '{"order_id": 2, "amuont": 1}'),
    ]
    assert all(item["reason"] for item in rejected)
    assert project.waiting("printer") == 2


def test_only_the_first_bad_lines_are_shown_and_all_are_kept(project: Project) -> None:
    (project.directory / "data.jsonl").write_text("x\n" * 20)
    ended = project.run("sendmany", "shop:orders", "data.jsonl")
    assert ended.returncode == 1
    assert ended.stderr.count("not valid JSON") == 5
    assert "further bad lines are in the file only" in ended.stderr
    assert len((project.directory / "data.jsonl.rejected").read_text().splitlines()) == 20


def test_sendmany_can_stop_at_the_first_bad_line(project: Project) -> None:
    (project.directory / "data.jsonl").write_text('{"order_id": 1}\nx\n{"order_id": 2}\n')
    ended = project.run("sendmany", "shop:orders", "data.jsonl", "--on-error", "stop")
    assert ended.returncode == 1
    assert ended.stderr.endswith("1 event sent.\n1 bad line, stopped there, see data.jsonl.rejected.\n")
    assert project.waiting("printer") == 1


def test_a_dry_run_sends_nothing(project: Project) -> None:
    (project.directory / "data.jsonl").write_text('{"order_id": 1}\n{"order_id": 2}\n')
    ended = project.run("sendmany", "shop:orders", "data.jsonl", "--dry-run")
    assert (ended.returncode, ended.stderr) == (0, "2 events would be sent.\n")
    assert project.waiting("printer") == 0


def test_csv_with_a_header_is_sent(project: Project) -> None:
    project.strict()
    (project.directory / "data.csv").write_bytes(
        b'\xef\xbb\xbforder_id,amount,note\r\n1,9.99,a\r\nx,1,b\r\n2\r\n3,1,c,d\r\n4,1,"two\nlines"\r\n'
    )
    ended = project.run("sendmany", "shop:orders", "data.csv")
    assert ended.returncode == 1
    assert "line 3: The value does not fit Order: order_id Input should be a valid integer" in ended.stderr
    assert "line 4: The value does not fit Order: amount field required" in ended.stderr
    assert "line 5: there are more values than columns in the header" in ended.stderr
    assert ended.stderr.endswith("2 events sent.\n3 bad lines, see data.csv.rejected.\n")


def test_sendmany_reads_stdin(project: Project) -> None:
    ended = project.run("sendmany", "shop:orders", "-", stdin='{"order_id": 1}\nx\n{"order_id": 2}\n')
    assert ended.returncode == 1
    assert "line 2: " in ended.stderr
    assert ended.stderr.endswith("2 events sent.\n1 bad line.\n")
    assert project.waiting("printer") == 2


def test_an_empty_file_is_no_mistake(project: Project) -> None:
    (project.directory / "data.jsonl").touch()
    ended = project.run("sendmany", "shop:orders", "data.jsonl")
    assert (ended.returncode, ended.stderr) == (0, "0 events sent.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], 'There is no file "missing.jsonl".'),
        (["."], 'There is no file ".".'),
        (["shop.py", "--on-error", "explode"], '--on-error must be skip or stop, not "explode".'),
        (["shop.py", "--rate", "0"], "--rate"),
    ],
)
def test_sendmany_refuses_what_makes_no_sense(project: Project, arguments: list[str], message: str) -> None:
    ended = project.run("sendmany", "shop:orders", *arguments)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_what_cannot_be_read_or_written_is_named(project: Project) -> None:
    project.strict()
    lines = project.directory / "data.jsonl"
    lines.write_text('{"order_id": 1}\n')
    (project.directory / "data.jsonl.rejected").mkdir()
    ended = project.run("sendmany", "shop:orders", "data.jsonl")
    assert ended.returncode == 2
    assert 'Cannot write bad lines to "data.jsonl.rejected"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_lines_without_sense_are_bad_lines_and_the_others_are_sent(project: Project) -> None:
    (project.directory / "deep.jsonl").write_text("[" * 100_000 + '\n{"order_id": 1}\n')
    (project.directory / "open.csv").write_text(f'order_id,note\n1,"open\n{"x" * 200_000}\n2,fine\n')
    for name, reason in {"deep.jsonl": "line 1: The value is not valid JSON", "open.csv": "it is not CSV"}.items():
        ended = project.run("sendmany", "shop:orders", name)
        assert ended.returncode == 1
        assert reason in ended.stderr
        assert ended.stderr.endswith(f"1 event sent.\n1 bad line, see {name}.rejected.\n")


def test_stdin_is_utf8_whatever_the_locale(project: Project) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert project.run("send", "shop:orders", "-", stdin='{"order_id": 1, "note": "größe"}', **plain).returncode == 0
    assert "größe" in project.run("tail", "shop:orders").stdout
    for command in ("send", "sendmany"):
        (project.directory / "latin").write_bytes(b'{"order_id": 2, "note": "\xff"}')
        ended = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m runnel {command} shop:orders - < latin"],
            cwd=project.directory,
            env=project.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert "The value does not fit Order" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_lines_that_are_not_utf8_are_bad_lines(project: Project) -> None:
    (project.directory / "data.jsonl").write_bytes(b'{"order_id": 1, "note": "\xff"}\n{"order_id": 2}\n')
    ended = project.run("sendmany", "shop:orders", "data.jsonl")
    assert ended.returncode == 1
    assert ended.stderr.endswith("1 event sent.\n1 bad line, see data.jsonl.rejected.\n")


# processor reset (with workers: test_cli_running.py)


def test_a_reset_is_only_shown_unless_it_is_to_be_executed(project: Project) -> None:
    project.send(1, 1, 1)
    before = project.positions("printer")
    shown = project.run("processor", "reset", "shop:printer", "--start", "$")
    assert shown.returncode == 0
    assert "Nothing was changed. Add --execute to do it: 0 events will be processed." in shown.stderr
    assert "will wait" in shown.stdout
    assert project.positions("printer") == before
    done = project.run("processor", "reset", "shop:printer", "--start", "$", "--execute")
    assert done.returncode == 0
    assert done.stderr == 'Done: "printer" goes on from there, with 0 events to process.\n'
    assert project.positions("printer") != before
    assert project.waiting("printer") == 0
    assert project.waiting("counter") == 3


def test_a_reset_to_an_id_leaves_that_event_and_later_ones(project: Project) -> None:
    ids = project.send(1, 1, 1)
    shown = project.run("processor", "reset", "shop:printer", "--start", ids[1], "--execute", "--json")
    assert shown.returncode == 0
    (moved,) = json.loads(shown.stdout)
    assert (moved["position"], moved["offset"], moved["lag"], moved["new_lag"]) == (None, ids[0], 3, 2)
    assert project.waiting("printer") == 2


def test_a_reset_of_one_partition_leaves_the_others(project: Project) -> None:
    project.send(*range(40))
    partitions = [item.partition for item in project.plan("printer")]
    assert len(partitions) == 4
    project.run("processor", "reset", "shop:printer", "--start", "$", "--execute", "--partition", "2")
    waiting = {item.partition: item.lag for item in project.plan("printer")}
    assert waiting[2] == 0
    assert all(waiting[partition] > 0 for partition in (0, 1, 3))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["shop:printer", "--start", "soon"], 2, '"soon" is neither an entry id nor a time. A place in a stream'),
        (["shop:printer", "--to-datetime", "yesterday"], 2, '"yesterday" is not a time. Times look like 2026-01-31T12'),
        (["shop:printer", "--to-datetime", "0"], 2, '"0" is not a time.'),
        (["shop:printer", "--start", f"{2**64}-0"], 2, "is larger than any entry id. Ids look like 1700000000000-0"),
        (["shop:printer", "--start", "0", "--partition", "4"], 2, "has the partitions 0 to 3, but not 4"),
        (["shop:prniter", "--start", "0"], 2, 'Did you mean "printer"?'),
        (["shop:orders", "--start", "0"], 2, "is a Stream; `runnel processor reset` needs a processor."),
        (["shop:printer"], 2, "Missing option '--start'"),
    ],
)
def test_a_reset_that_makes_no_sense_is_refused(
    project: Project, arguments: list[str], status: int, message: str
) -> None:
    ended = project.run("processor", "reset", *arguments)
    assert ended.returncode == status
    assert message in ended.stderr


# Output


def test_nothing_is_coloured_in_a_pipe(project: Project) -> None:
    for command in (["worker", "nothing"], ["--help"], ["processor", "reset", "shop:printer", "--start", "0"]):
        ended = project.run(*command)
        assert "\x1b" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_terminal_cannot_show_is_escaped(project: Project, encoding: str) -> None:
    project.run("send", "shop:orders", '{"order_id": 1, "note": "5 €"}')
    shown = project.run("tail", "shop:orders", PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert '"note":"5 \\u20ac"' in shown.stdout


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("status shop:app <&-", 0, ""),
        ("status shop:app >&-", 0, ""),
        ("worker shop:app --burst <&- >&- 2>/dev/null", 0, ""),
        ("send shop:orders - <&-", 2, "Error: There is nothing to read: standard input is closed.\n"),
        pytest.param(
            *("tail shop:orders >/dev/full", 1, "Error: The output cannot be written, since the disk is full.\n"),
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here"),
        ),
    ],
)
def test_streams_that_are_closed_or_full_are_no_traceback(
    project: Project, command: str, status: int, said: str
) -> None:
    project.send(1)
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m runnel {command}"],
        cwd=project.directory,
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (status, said)


def test_a_reader_that_goes_away_is_no_traceback(project: Project) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = project.run("send", "shop:orders", '{"order_id": 1}', stdout=writer)
    os.close(writer)
    assert "Traceback" not in ended.stderr
    assert Path(project.directory, "shop.py").exists()
