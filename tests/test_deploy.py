"""The files of ``deploy/``: tools of the field find them right, and the commands in them do what the files count on.

There is no Docker engine and no cluster here. So the files are read by hadolint (Dockerfile), compose-spec (compose),
kubernetes-validate with the schemas of Kubernetes, kubectl and systemd-analyze; and each command is run as it stands
there, but for the address, with the environment of its file.
"""

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import typer
import yaml
from dockerfile_parse import DockerfileParser

from program import PATIENCE, Running, environment, until
from runnel.cli import app as cli
from runnel.cli.supervising import Ending, judge
from runnel.server import EmbeddedServer
from runnel.server.address import free_port
from runnel.settings import PREFIX, Settings
from test_telemetry import get

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = ("1.29", "1.31", "1.33")
PORT = "9100"
MARGIN = 5
"""Seconds beside the grace period: for the commit, the hand-over, and the end of the process."""


def instructions() -> list[dict[str, Any]]:
    parser = DockerfileParser(path=str(DEPLOY / "Dockerfile"), cache_content=True)
    return [one for one in parser.structure if one["instruction"] != "COMMENT"]


def of_image(name: str) -> list[str]:
    """The values of an instruction, in the order of the file."""
    return [one["value"] for one in instructions() if one["instruction"] == name]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    return loaded


def unit() -> dict[str, str]:
    """The section of the service; of a key that is repeated, the last."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / "runnel-worker@.service")
    return dict(parser["Service"])


@dataclass(frozen=True)
class Start:
    """How a file starts a worker: the words behind ``runnel``, its variables, and the seconds it gives it to stop."""

    words: list[str]
    variables: dict[str, str]
    patience: float


def starts() -> dict[str, Start]:
    """Of each file."""
    entry, words = (yaml.safe_load(of_image(name)[-1]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["runnel"]
    image = dict(re.findall(r"(\w+)=(\S+)", " ".join(of_image("ENV"))))
    del image["PATH"]
    service = compose()["services"]["worker"]
    pod = manifest("deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = manifest("configmap")["data"] | manifest("secret")["stringData"]
    section = unit()
    line = shlex.split(section["ExecStart"].replace("%i", "1"))
    assert Path(line[0]).name == "runnel"
    return {
        "docker": Start(words, image, float("inf")),
        "compose": Start(service["command"], image | service["environment"], _seconds(service["stop_grace_period"])),
        "kubernetes": Start(container["args"], image | config, pod["terminationGracePeriodSeconds"]),
        "systemd": Start(line[1:], {}, float(section["TimeoutStopSec"])),
    }


def _seconds(text: str) -> float:
    matched = re.fullmatch(r"(\d+)s", text)
    assert matched
    return float(matched[1])


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of them; it ends with an error if it does not know one."""
    command = typer.main.get_command(cli).commands[words[0]]  # type: ignore[attr-defined]
    params: dict[str, Any] = command.make_context(words[0], list(words[1:])).params
    return params


def everything() -> list[str]:
    return list(starts())


# What they say, without running it


@pytest.mark.parametrize("name", everything())
def test_each_command_is_one_of_ours_with_a_health_address_and_a_grace_period(name: str) -> None:
    start = starts()[name]
    params = parsed(start.words)
    assert start.words[0] == "worker"
    assert params["http"].endswith(":9101" if name == "systemd" else f":{PORT}")
    assert params["grace_period"] + MARGIN <= start.patience
    assert params["target"] or start.variables["RUNNEL_APP"] == "example:app"
    known = {PREFIX + field.upper() for field in Settings.model_fields} | {"RUNNEL_APP"}
    assert {variable for variable in start.variables if variable.startswith(PREFIX)} <= known


def test_the_dockerfile_has_nothing_that_hadolint_finds() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    ended = subprocess.run(
        [hadolint, "--failure-threshold", "style", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_image_is_built_of_files_that_are_there_and_runs_as_nobody_special() -> None:
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    copied = [word for value in of_image("COPY") if "--from" not in value for word in value.split()[:-1]]
    assert sorted(copied) == sorted(allowed), "what is copied is what Docker is given"
    for word in copied:
        assert (ROOT / word).exists(), word
    assert [one["instruction"] for one in instructions()].index("USER") < len(instructions()) - 1
    assert of_image("USER")[-1] == "10001:10001"
    (install,) = [value for value in of_image("RUN") if "pip install" in value]
    assert "'.[fast,http]'" in install
    assert "-c constraints.txt" in install
    assert of_image("EXPOSE") == [PORT]


def test_the_compose_file_is_one_and_runs_two_workers_on_a_server_that_keeps_its_data() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert set(compose_spec.PyCompose.from_yaml(text).service_names()) == {
        "valkey",
        "worker",
        "prometheus",
        "grafana",
    }
    services = compose()["services"]
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["worker"]["depends_on"]["valkey"]["condition"] == "service_healthy"
    assert services["worker"]["environment"]["RUNNEL_REDIS_URL"] == "redis://valkey:6379"
    assert "/data" in services["valkey"]["volumes"][0], "the append-only file outlives the container"
    assert services["valkey"]["healthcheck"]["test"]
    for name in ("valkey", "worker"):
        assert services[name]["restart"] == "unless-stopped", "it comes back when the machine was restarted"
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose()["volumes"] or (DEPLOY / source).exists(), f"{name}: {source}"


def test_a_doctor_finds_nothing_to_be_mended_on_the_server_of_the_compose_file(
    server_binary: str | Path | None, tmp_path: Path
) -> None:
    program, *options = shlex.split(compose()["services"]["valkey"]["command"])
    assert program == "valkey-server"
    assert options[options.index("--appendonly") + 1] == "yes"
    at = options.index("--appendonly")
    rest = options[:at] + options[at + 2 :]  # the embedded server has its own word for that
    with EmbeddedServer(binary=server_binary, data_dir=tmp_path / "data", append_only=True, extra=rest) as server:
        variables = _variables(server.url, server_binary, tmp_path)
        command = [sys.executable, "-m", "runnel", "doctor", "example:app"]
        ended = subprocess.run(
            command, cwd=DEPLOY, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "All is well.\n")


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    named = manifest("kustomization")["resources"]
    assert sorted(named) == sorted(
        path.name
        for path in (DEPLOY / "kubernetes").iterdir()
        if path.stem not in ("kustomization", "podmonitor", "scaledobject")
    )
    for name in named:
        kubernetes_validate.validate(manifest(name.removesuffix(".yaml")), version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_the_manifests_together() -> None:
    ended = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == 0, ended.stderr
    kinds = [one["kind"] for one in yaml.safe_load_all(ended.stdout)]
    assert sorted(kinds) == ["ConfigMap", "Deployment", "PodDisruptionBudget", "Secret"]


def test_the_manifests_speak_of_the_same_pods_port_and_probes() -> None:
    deployment = manifest("deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"] == labels
    (container,) = deployment["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == PORT == deployment["template"]["metadata"]["annotations"]["prometheus.io/port"]
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    paths = {name: probe["path"] for name, probe in probes.items()}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for name in ("configMapRef", "secretRef"):
        (source,) = [one[name]["name"] for one in container["envFrom"] if name in one]
        assert source == manifest("configmap" if name == "configMapRef" else "secret")["metadata"]["name"]
    monitored = manifest("podmonitor")
    assert (monitored["apiVersion"], monitored["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitored["spec"]["selector"]["matchLabels"] == labels
    (endpoint,) = monitored["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    uid = of_image("USER")[-1].partition(":")[0]
    assert str(deployment["template"]["spec"]["securityContext"]["runAsUser"]) == uid


def test_keda_scales_the_deployment_between_one_worker_and_one_per_partition() -> None:
    scaled = manifest("scaledobject")
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = scaled["spec"]
    assert spec["scaleTargetRef"]["name"] == manifest("deployment")["metadata"]["name"]
    assert 1 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    assert spec["maxReplicaCount"] == Settings(name="any").partition_count
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold", "ignoreNullValues"}
    assert float(trigger["metadata"]["threshold"]) > 0
    assert trigger["metadata"]["ignoreNullValues"] == "false", "no series is no lag of 0: then `fallback` counts"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_has_nothing_against_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "runnel-worker@.service").read_text()
    program = Path(sys.executable).parent / "runnel"
    path = tmp_path / "runnel-worker@.service"
    path.write_text(text.replace("/opt/shop/.venv/bin/runnel", str(program)))
    for command in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        ended = subprocess.run(
            ["systemd-analyze", *command, path], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout


def test_systemd_starts_a_worker_again_where_our_own_supervisor_would() -> None:
    section = unit()
    assert section["Restart"] == "on-failure"
    prevented = {int(status) for status in section["RestartPreventExitStatus"].split()}
    success = {0} | {int(status) for status in section["SuccessExitStatus"].split()}
    for status in (0, 1, 2, 3, 4, 130):
        again = status not in prevented | success
        assert again == (judge(status) is Ending.CRASHED), status
        assert (status in success) == (judge(status) is Ending.FINISHED), status


# Running it


def _variables(url: str, server_binary: str | Path | None, directory: Path) -> dict[str, str]:
    return environment(url, "shop", server_binary, directory) | {"RUNNEL_REDIS_URL": url}


@pytest.fixture(scope="module")
def own_server(server_binary: str | Path | None) -> Iterator[EmbeddedServer]:
    """The app is called shop in all files."""
    with EmbeddedServer(binary=server_binary) as server:
        yield server


def _start(start: Start, url: str, binary: str | Path | None, directory: Path, front: list[str], port: int) -> Running:
    address = f"127.0.0.1:{port}"  # not what is open to a whole network
    words = [re.sub(r"^(\d+\.){3}\d+:\d+$", address, word) for word in start.words]
    variables = _variables(url, binary, directory) | start.variables | {"RUNNEL_REDIS_URL": url}
    shutil.copy(DEPLOY / "example.py", directory)
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    return Running([*front, "runnel", *words], directory, variables, 0)


@pytest.mark.processes
@pytest.mark.parametrize("name", everything())
def test_a_worker_started_so_answers_the_probes_and_stops_in_time(
    name: str, own_server: EmbeddedServer, server_binary: str | Path | None, tmp_path: Path
) -> None:
    start, port = starts()[name], free_port("127.0.0.1")
    worker = _start(start, own_server.url, server_binary, tmp_path, [], port)
    try:
        until(lambda: "health and metrics are served" in worker.stderr, lambda: worker.stderr)
        url = f"http://127.0.0.1:{port}"
        until(lambda: get(f"{url}/readyz") == (200, "ready\n"), lambda: worker.stderr)
        assert get(f"{url}/livez") == (200, "alive\n")
        assert "no setting" not in worker.stderr
        assert worker.stop() == 0
    finally:
        worker.process.kill()
        worker.process.wait()


@pytest.mark.processes
def test_the_worker_of_the_image_heeds_sigterm_as_process_1_and_is_found_healthy(
    own_server: EmbeddedServer, server_binary: str | Path | None, tmp_path: Path
) -> None:
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no namespace of processes can be made here")
    port = free_port("127.0.0.1")
    worker = _start(starts()["docker"], own_server.url, server_binary, tmp_path, namespace, port)
    (check,) = of_image("HEALTHCHECK")
    probe = yaml.safe_load(check[check.index("CMD") + len("CMD") :])
    assert probe[0] == "python"
    probe = [sys.executable, *(word.replace(PORT, str(port)) for word in probe[1:])]
    try:
        assert subprocess.run(probe, capture_output=True, check=False).returncode != 0, "nobody answers yet"
        until(lambda: "partitions assigned" in worker.stderr, lambda: worker.stderr)
        assert re.search(r'"worker": "\S+-1-\w+"', worker.stderr), worker.stderr
        assert subprocess.run(probe, capture_output=True, check=False).returncode == 0
        children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert worker.ends() == 0
    finally:
        worker.process.kill()
        worker.process.wait()
