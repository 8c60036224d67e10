"""Dashboard, alert rules and scaling of ``deploy/``: what they ask for is what a worker serves, and they fire in time.

Expressions are parsed by promql-parser; rules are checked and played by promtool, which comes with Prometheus.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from program import PATIENCE, Running, environment, until
from runnel.server import EmbeddedServer
from runnel.telemetry.figures import METRICS
from test_deploy import DEPLOY, PORT, ROOT, compose, manifest
from test_telemetry import get, serving

PROMETHEUS = DEPLOY / "prometheus"
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""

VARIABLES = {"$processor": "printer", "$__rate_interval": "1m"}
"""Of Grafana, with a value each."""


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana" / "runnel.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    """Without the headings."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[tuple[str, str]]:
    """Every expression in PromQL, with where it stands."""
    found = [(f"alert {rule['alert']}", rule["expr"]) for rule in rules()]
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append((f"panel {panel['title']} {target['refId']}", expression))
    (trigger,) = manifest("scaledobject")["spec"]["triggers"]
    queries = re.findall(r"^\| .+ \| (`.+`(?: and `.+`)*) \|$", _queries(), re.MULTILINE)
    assert len(queries) >= 5
    documented = [query for cell in queries for query in re.findall(r"`([^`]+)`", cell)]
    return [*found, ("keda", trigger["metadata"]["query"]), *((f"docs {query}", query) for query in documented)]


def _queries() -> str:
    return (ROOT / "docs" / "metrics.md").read_text().partition("| question | PromQL |")[2]


@pytest.fixture(scope="module")
def served(server_binary: str | Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All metrics of a worker that has processed something."""
    directory = tmp_path_factory.mktemp("worker")
    shutil.copy(DEPLOY / "example.py", directory)
    with EmbeddedServer(binary=server_binary) as server:
        variables = environment(server.url, "shop", server_binary, directory)
        worker = Running(
            [sys.executable, "-m", "runnel", "worker", "example:app", "--http", "0"], directory, variables, 0
        )
        try:
            url = serving(worker)
            until(lambda: "runnel_lag_events{" in get(f"{url}/metrics")[1], lambda: worker.stderr)
            yield get(f"{url}/metrics")[1]
            assert worker.stop() == 0
        finally:
            worker.process.kill()
            worker.process.wait()


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression, with the labels that are asked of it or of what is made of it."""
    groupings: set[str] = set()
    selectors: list[tuple[str, set[str]]] = []

    def look(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            assert node.name is not None
            selectors.append((node.name, {matcher.name for matcher in node.matchers.matchers}))
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            groupings.update(node.modifier.labels)
        if isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            groupings.update(node.modifier.matching.labels)

    promql.walk(promql.parse(expression), look)
    for name, labels in selectors:
        yield name, labels | groupings


@pytest.mark.processes
def test_every_metric_and_label_that_is_asked_for_is_served(served: str) -> None:
    names = set(re.findall(r"^# TYPE (\w+) (?:counter|gauge)$", served, re.MULTILINE))
    for name in re.findall(r"^# TYPE (\w+) histogram$", served, re.MULTILINE):
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    for where, expression in expressions():
        for name, labels in asked(expression):
            assert name in names, f"{where}: {name}"
            metric = METRICS.get(name.removesuffix("_bucket"))
            known = SCRAPED | ({"le"} if name.endswith("_bucket") else set())
            known |= set() if metric is None else set(metric.labels)
            assert labels <= known, f"{where}: {name} has no {labels - known}"


# The dashboard


def test_the_dashboard_is_one_that_grafana_can_load() -> None:
    loaded = dashboard()
    ids = [panel["id"] for panel in loaded["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable for variable in loaded["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(loaded)))
    assert used <= {*variables, "__rate_interval", "__all"}
    for panel in panels():
        source = {"type": "prometheus", "uid": "${datasource}"}
        assert panel["datasource"] == source
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"] == source
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


def test_no_panel_covers_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_every_label_of_a_legend_is_one_of_its_series() -> None:
    for panel in panels():
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            expression = target["expr"]
            for label in shown:
                kept = re.findall(r"(?:by|on) \(([^)]*)\)", expression)
                assert any(label in labels.replace(" ", "").split(",") for labels in kept) or (
                    label in SCRAPED and "by (" not in expression
                ), f"{panel['title']}: {label}"


# The rules


def promtool(*words: str | Path) -> str:
    """What promtool says, which is nothing bad."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; it comes with Prometheus (apt-get install prometheus)")
    ended = subprocess.run(
        [program, *words], cwd=PROMETHEUS, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_promtool_finds_the_rules_and_the_configuration_right() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", "alerts.yml")
    assert "is valid prometheus config file" in promtool("check", "config", "prometheus.yml")


def test_the_rules_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_each_rule_is_played_firing_and_silent() -> None:
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_each_rule_says_how_bad_it_is_and_names_the_page_that_helps() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        sections = re.split(r"^## ", (ROOT / page).read_text(), flags=re.MULTILINE)
        (section,) = [text for text in sections if _anchor(text.partition("\n")[0]) == anchor]
        assert f"`{rule['alert']}`" in section, f"who comes there because of {rule['alert']} finds it"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def test_prometheus_and_grafana_are_given_the_files_that_are_here() -> None:
    (scrape,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    (service,) = scrape["dns_sd_configs"]
    assert service["names"][0] in compose()["services"]
    assert str(service["port"]) == PORT
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/runnel.yaml").read_text())["providers"]
    mounts = [volume.split(":")[1] for volume in compose()["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/runnel.json" in mounts
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"].split("/")[2].split(":")[0] in compose()["services"]
