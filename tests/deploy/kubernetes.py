"""What an overlay of deploy/k8s makes, and who may reach whom in it."""

import ipaddress
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.stack.programs import binary

ROOT = Path(__file__).parents[2]
OVERLAYS = ("small", "production")
NAMESPACE = "spanloom"

Labels = dict[str, str]


@dataclass(frozen=True)
class Peer:
    """A pod, here or in another namespace, or an address outside of the cluster."""

    labels: tuple[tuple[str, str], ...] = ()
    namespace: str = NAMESPACE
    address: str | None = None


@dataclass
class Workload:
    """A Deployment, StatefulSet or DaemonSet with its one container."""

    kind: str
    name: str
    spec: dict[str, Any]

    @property
    def pod(self) -> dict[str, Any]:
        return dict(self.spec["template"]["spec"])

    @property
    def labels(self) -> Labels:
        return dict(self.spec["template"]["metadata"]["labels"])

    @property
    def peer(self) -> Peer:
        return Peer(tuple(sorted(self.labels.items())))

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}


@cache
def build(overlay: str) -> list[dict[str, Any]]:
    """The objects, as `kubectl apply -k` would send them."""
    folder = ROOT / "deploy/k8s/overlays" / overlay
    done = subprocess.run(
        [binary("kustomize"), "build", folder],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


def kind(overlay: str, *kinds: str) -> dict[str, dict[str, Any]]:
    """Objects of these kinds by name."""
    return {each["metadata"]["name"]: each for each in build(overlay) if each["kind"] in kinds}


def workloads(overlay: str) -> dict[str, Workload]:
    found = kind(overlay, "Deployment", "StatefulSet", "DaemonSet")
    return {name: Workload(each["kind"], name, each["spec"]) for name, each in found.items()}


def environment(overlay: str, workload: Workload) -> dict[str, str]:
    """Variables of the container; a secret's stands for itself as `secret:NAME`."""
    given: dict[str, str] = {}
    maps = kind(overlay, "ConfigMap")
    for source in workload.container.get("envFrom", []):
        given |= maps[source["configMapRef"]["name"]]["data"]
    for each in workload.container.get("env", []):
        if "value" in each:
            given[each["name"]] = each["value"]
        elif "secretKeyRef" in each["valueFrom"]:
            given[each["name"]] = f"secret:{each['valueFrom']['secretKeyRef']['name']}"
        else:
            given[each["name"]] = f"field:{each['valueFrom']['fieldRef']['fieldPath']}"
    return given


def selects(selector: dict[str, Any] | None, labels: Labels) -> bool:
    """A label selector, matchLabels and matchExpressions with In."""
    if selector is None:
        return False
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def allowed(overlay: str, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether NetworkPolicies let `source` open a connection to `target`.

    As networking.k8s.io/v1 defines it: both ends must agree where they are pods of the namespace;
    one that a policy selects is denied whatever no policy allows.
    """
    sides = (
        ("Egress", "egress", "to", source, target),
        ("Ingress", "ingress", "from", target, source),
    )
    for direction, rules, peers, subject, other in sides:
        if subject.namespace != NAMESPACE or subject.address is not None:
            continue
        policies = [
            policy["spec"]
            for policy in kind(overlay, "NetworkPolicy").values()
            if direction in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], dict(subject.labels))
        ]
        if policies and not any(
            _rule_allows(rule, peers, other, port, protocol)
            for policy in policies
            for rule in policy.get(rules, [])
        ):
            return False
    return True


def _rule_allows(rule: dict[str, Any], peers: str, other: Peer, port: int, protocol: str) -> bool:
    # every rule of ours names its ports: one without would allow all
    ports = {(each.get("protocol", "TCP"), each["port"]) for each in rule["ports"]}
    if (protocol, port) not in ports:
        return False
    return peers not in rule or any(_is_peer(each, other) for each in rule[peers])


def _is_peer(peer: dict[str, Any], other: Peer) -> bool:
    if "ipBlock" in peer:
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        excluded = map(ipaddress.ip_network, peer["ipBlock"].get("except", []))
        return address in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not any(
            address in network for network in excluded
        )
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != NAMESPACE:
        return False
    return "podSelector" not in peer or selects(peer["podSelector"], dict(other.labels))


def behind(overlay: str, host: str, port: int) -> Iterator[tuple[Workload, int]]:
    """Workloads, and their containers' ports, that the Service `host` leads to at `port`."""
    service = kind(overlay, "Service").get(host)
    if service is None:
        return
    for workload in workloads(overlay).values():
        if not selects({"matchLabels": service["spec"]["selector"]}, workload.labels):
            continue
        for each in service["spec"]["ports"]:
            if each["port"] == port:
                yield workload, workload.ports[each["targetPort"]]


_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}


def violations(pod: dict[str, Any]) -> list[str]:
    """What the standard "restricted" has against a pod, baseline included.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    found = [field for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    for volume in pod.get("volumes", []):
        found += [f"volume {key}" for key in volume.keys() - {"name"} - _VOLUMES]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        ports = container.get("ports", [])
        found += [f"hostPort {port['hostPort']}" for port in ports if "hostPort" in port]
        found += _container_violations(
            {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        )
    return found


def _container_violations(context: dict[str, Any]) -> list[str]:
    capabilities = context.get("capabilities", {})
    profile = context.get("seccompProfile", {}).get("type")
    rules = {
        "privileged": not context.get("privileged", False),
        "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
        "runAsNonRoot": context.get("runAsNonRoot", False),
        "runAsUser": context.get("runAsUser") != 0,
        "seccompProfile": profile in {"RuntimeDefault", "Localhost"},
        "capabilities.drop": "ALL" in capabilities.get("drop", []),
        "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
    }
    return [name for name, holds in rules.items() if not holds]


def relabelled(labels: dict[str, str], rules: list[dict[str, Any]]) -> bool:
    """Apply Prometheus' relabelling `rules` to `labels` in place; whether the target stays."""
    for rule in rules:
        value = ";".join(labels.get(name, "") for name in rule.get("source_labels", []))
        match = re.fullmatch(rule.get("regex", "(.*)"), value)
        if rule.get("action") == "keep":
            if match is None:
                return False
        elif match is not None:
            replacement = rule.get("replacement", "$1")
            labels[rule["target_label"]] = match.expand(replacement.replace("$1", r"\1"))
    return True
