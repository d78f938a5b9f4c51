"""The rules as Prometheus's own tools see them: valid, and every alert fires when it should and only then."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "k8s/components/monitoring/prometheusrule.yaml"
TESTS = Path(__file__).with_name("rules_test.yaml")


def spec() -> dict[str, Any]:
    """The rules without their Kubernetes envelope: a plain rules file."""
    content: dict[str, Any] = yaml.safe_load(RULES.read_text())["spec"]
    return content


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in spec()["groups"] for rule in group["rules"] if "alert" in rule}


def promtool(*arguments: str | Path) -> str:
    """What promtool prints; skips where it is not installed."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(spec(), width=1000))
    return path


def test_promtool_accepts_the_rules(rules: Path) -> None:
    count = sum(len(group["rules"]) for group in spec()["groups"])
    assert f"SUCCESS: {count} rules found" in promtool("check", "rules", rules)


def test_every_alert_fires_and_stays_silent_as_its_tests_say(rules: Path) -> None:
    shutil.copy(TESTS, rules.parent)
    assert "SUCCESS" in promtool("test", "rules", rules.parent / TESTS.name)


def test_every_alert_has_series_that_fire_it_and_series_that_do_not() -> None:
    fires, silent = set(), set()
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
    assert fires == silent == alerts().keys()


def test_every_alert_says_how_bad_it_is_what_happened_and_what_to_do() -> None:
    for name, alert in alerts().items():
        assert name.startswith("Forwardpass")
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["runbook_url"].endswith(f"RUNBOOK.md#{name.lower()}")
