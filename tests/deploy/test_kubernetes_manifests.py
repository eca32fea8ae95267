"""The Kubernetes manifests: valid, and consistent with each other and with the pool."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccp.server.settings import Settings
from tests.deploy.tools import DEPLOY, run

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))
MANIFESTS = {name: yaml.safe_load((FOLDER / name).read_text("utf-8")) for name in KUSTOMIZATION["resources"]}
DEPLOYMENT = MANIFESTS["deployment.yaml"]["spec"]
JOB = MANIFESTS["migrate.yaml"]["spec"]


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_manifest_fits_the_schema_of_kubernetes(name: str) -> None:
    run("kubernetes-validate", "--strict", FOLDER / name)


def test_kustomization_lists_every_manifest() -> None:
    assert {path.name for path in Path(FOLDER).glob("*.yaml")} == {"kustomization.yaml", *MANIFESTS}


def test_selectors_find_the_pods_of_the_pool_and_not_the_migration() -> None:
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    selectors = [
        DEPLOYMENT["selector"]["matchLabels"],
        MANIFESTS["service.yaml"]["spec"]["selector"],
        MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"],
    ]
    migration = JOB["template"]["metadata"]["labels"]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= migration.items()
    assert MANIFESTS["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"].items() <= migration.items()


@pytest.mark.parametrize("spec", [DEPLOYMENT["template"]["spec"], JOB["template"]["spec"]], ids=["pool", "migration"])
def test_pods_meet_the_restricted_pod_security_standard(spec: dict[str, Any]) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_settings_in_the_config_map_are_valid_and_fit_the_pods() -> None:
    text = MANIFESTS["configmap.yaml"]["data"]["ccp.toml"]
    settings = Settings(**tomllib.loads(text))
    (container,) = DEPLOYMENT["template"]["spec"]["containers"]
    assert settings.port == container["ports"][0]["containerPort"]
    probe = container["readinessProbe"]
    assert settings.drain_period >= 2 * probe["periodSeconds"]
    grace = DEPLOYMENT["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.drain_period + 20
    for name in ("startupProbe", "livenessProbe"):
        assert container[name]["httpGet"]["path"] == "/health/live"
    assert probe["httpGet"]["path"] == "/health/ready"
