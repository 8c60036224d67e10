"""TLS with certificates of clients, to one server, to sentinels and what they watch, and to a cluster."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import eventually, running
from runnel import App, Record
from runnel._core.slots import SLOTS
from runnel.errors import RedisUnavailable
from runnel.server import EmbeddedServer
from runnel.server.address import free_port
from topologies import HOST, Sentinel, ask, until

pytestmark = pytest.mark.anyio


class Step(Record):
    n: int


@pytest.fixture(scope="module")
def tls_binary(server_binary: str | Path | None) -> str:
    """The server under test if it speaks TLS, else another one that does."""
    for program in (str(server_binary), "valkey-server", "redis-server"):
        if found := shutil.which(program):
            # Without a certificate it ends at once; what it says tells whether it could do with one.
            said = subprocess.run(
                [found, "--port", "0", "--tls-port", str(free_port(HOST)), "--bind", HOST],
                capture_output=True,
                timeout=10,
                check=False,
            )
            if b"No tls-cert-file" in said.stdout:
                return found
    pytest.skip("no server here speaks TLS")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority, ``ca.pem``, and ``mine.pem`` and ``mine.key``, signed by it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates with")
    here = tmp_path_factory.mktemp("certificates")
    (here / "names").write_text(f"subjectAltName=IP:{HOST}\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    for command in (
        ["req", "-x509", *key, "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"],
        ["req", *key, "/CN=mine", "-keyout", "mine.key", "-out", "mine.csr"],
        ["x509", "-req", "-in", "mine.csr", *signed, "-days", "2", "-out", "mine.pem", "-extfile", "names"],
    ):
        subprocess.run(["openssl", *command], cwd=here, check=True, capture_output=True)
    return here


def options(certificates: Path) -> list[tuple[str, str]]:
    """Of a server that takes TLS only from who has a certificate of the authority."""
    files = [("cert-file", "mine.pem"), ("key-file", "mine.key"), ("ca-cert-file", "ca.pem")]
    return [("tls-" + name, str(certificates / file)) for name, file in files] + [("tls-auth-clients", "yes")]


@pytest.fixture(params=["one", "sentinel", "cluster"])
def secured_url(
    request: pytest.FixtureRequest, tls_binary: str, certificates: Path, server_binary: str | Path | None
) -> Iterator[str]:
    """Without the client's certificate."""
    port = free_port(HOST)
    extra = [("tls-port", str(port)), *options(certificates)]
    if request.param == "cluster":
        bus = ("cluster-port", str(free_port(HOST)))  # by default 10,000 above the port, which may be taken
        extra += [("cluster-enabled", "yes"), ("tls-cluster", "yes"), bus]
    flat = [word for name, value in extra for word in (f"--{name}", value)]
    with EmbeddedServer(binary=tls_binary, extra=flat) as server:
        if request.param == "one":
            yield f"rediss://{HOST}:{port}"
        elif request.param == "cluster":
            ask(server.url, "CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
            until(lambda: b"cluster_state:ok" in ask(server.url, "CLUSTER", "INFO"), "all slots are served")
            yield f"rediss+cluster://{HOST}:{port}"
        else:
            lines = [f"{name} {value}" for name, value in options(certificates)]
            sentinel = Sentinel(tls_binary, "events", port, lines=["tls-replication yes", *lines])
            try:
                yield f"rediss+sentinel://{HOST}:{sentinel.tls_port}/events"
            finally:
                sentinel.stop()


async def test_events_go_over_tls_to_whoever_has_a_certificate(
    app_name: str, secured_url: str, certificates: Path
) -> None:
    authority = f"ssl_ca_certs={certificates}/ca.pem"
    mine = f"ssl_certfile={certificates}/mine.pem&ssl_keyfile={certificates}/mine.key"
    app = App(name=app_name, redis_url=f"{secured_url}?{authority}&{mine}", partition_count=4)
    stream = app.stream("steps", record=Step, partition_by="n")
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)

    async with app:
        await eventually(lambda: sending(stream), timeout=20)
        async with running(app):
            await eventually(lambda: seen == [1], timeout=20)

    for query, why in ((authority, "certificate|closed|reset|EOF"), (mine, "certificate verify failed")):
        refused = App(name=app_name, redis_url=f"{secured_url}?{query}", send_timeout=0.5)
        async with refused:
            with pytest.raises(RedisUnavailable, match=rf"(?i){why}"):
                await refused.stream("steps", record=Step, partition_by="n", partition_count=4).send(Step(n=1))


async def sending(stream) -> bool:
    """Whether an event could be sent: a sentinel that has just begun does not know its primary yet."""
    try:
        await stream.send(Step(n=1))
    except RedisUnavailable:
        return False
    return True
