"""The manifests as `kubectl apply -k` would send them: valid, coherent, restricted."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zrelay_shared.limits import DEFAULT_PORTS
from zrelay_shared.service.lifecycle import LIVENESS

Manifest = dict[str, Any]
Render = Callable[[str], list[Manifest]]

FOLDERS = ("overlays/cpu", "overlays/cuda", "overlays/tls", "examples/external-encoder", "examples/fill-models")
VERSIONS = ("1.30", "1.37")
"""The oldest Kubernetes that the manifests are for, and the newest whose schemas are at hand."""


def kind_of(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Those of one kind, by name without the `zrelay-`."""
    return {m["metadata"]["name"].removeprefix("zrelay-"): m for m in manifests if m["kind"] == kind}


def pods_of(manifests: list[Manifest]) -> list[Manifest]:
    """The spec of every pod that they would make."""
    made = [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"]
    return made + [m["spec"] for m in manifests if m["kind"] == "Pod"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_valid(render: Render, folder: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for manifest in render(folder):
        if manifest["apiVersion"] == "cert-manager.io/v1":
            continue  # Kubernetes has no schema of it; test_certificates looks at these
        validator.validate(manifest, version, strict=True)


def test_validation_would_tell(render: Render) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    wrong = copy.deepcopy(kind_of(render("overlays/cpu"), "Deployment")["encoder"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, VERSIONS[-1], strict=True)


def test_everything_is_in_one_namespace(render: Render, deploy: Path) -> None:
    folders = {str(path.parent.relative_to(deploy / "kubernetes")) for path in deploy.rglob("kustomization.yaml")}
    assert folders == {"base", *FOLDERS}
    for folder in FOLDERS:
        for manifest in render(folder):
            where = manifest["metadata"]["name" if manifest["kind"] == "Namespace" else "namespace"]
            assert where == "zrelay"


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/cuda"])
def test_each_role_is_whole(render: Render, folder: str, health_names: dict[str, str]) -> None:
    manifests = render(folder)
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        assert kind_of(manifests, kind).keys() == DEFAULT_PORTS.keys()
    for role, deployment in kind_of(manifests, "Deployment").items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        service = kind_of(manifests, "Service")[role]["spec"]
        budget = kind_of(manifests, "PodDisruptionBudget")[role]["spec"]
        assert labels == {"app.kubernetes.io/name": "zrelay", "app.kubernetes.io/component": role}
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert service["selector"] == labels, "these pods and no others"
        assert budget["selector"]["matchLabels"] == labels
        assert budget["maxUnavailable"] == 1
        assert service["clusterIP"] == "None"

        port = DEFAULT_PORTS[role]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (named,) = container["ports"]
        assert named == {"name": "grpc", "containerPort": port}
        (offered,) = service["ports"]
        assert (offered["port"], offered["targetPort"]) == (port, "grpc")
        probes = {name: container[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")}
        ready = {"port": port, "service": health_names[role]}
        assert probes == {"startup": ready, "readiness": ready, "liveness": {"port": port, "service": LIVENESS}}
        startup = container["startupProbe"]
        load_s = startup["failureThreshold"] * startup["periodSeconds"]
        assert load_s >= 900
        assert deployment["spec"]["progressDeadlineSeconds"] > load_s


def test_overlays_leave_the_command_alone(render: Render, launches: list[Any]) -> None:
    for folder in ("overlays/cpu", "overlays/cuda"):
        for role, deployment in kind_of(render(folder), "Deployment").items():
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            argv = next(launch.argv for launch in launches if launch.where == f"kubernetes {role}")
            assert container["command"] + container["args"] == argv


@pytest.mark.parametrize("folder", FOLDERS)
def test_restricted(render: Render, folder: str) -> None:
    """What the namespace's `restricted` profile demands, and what it does not: read-only root, no API token."""
    pods = pods_of(render(folder))
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001, "the image's user"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        sources = {key for volume in pod["volumes"] for key in volume}
        assert sources <= {"name", "persistentVolumeClaim", "emptyDir", "secret"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_namespace_enforces_it(render: Render) -> None:
    labels = kind_of(render("overlays/cpu"), "Namespace")["zrelay"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_volumes(render: Render) -> None:
    manifests = render("overlays/cpu")
    assert kind_of(manifests, "PersistentVolumeClaim").keys() == {"models"}
    for pod in pods_of(manifests):
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        model = pod["containers"][0]["args"][3]
        assert model.startswith(mounts["models"]["mountPath"] + "/")
        assert mounts["models"]["readOnly"] is True
        assert mounts["state"]["mountPath"] == "/var/lib/zrelay", "the image's ZRELAY_STATE"
        claim = next(volume for volume in pod["volumes"] if volume["name"] == "models")["persistentVolumeClaim"]
        assert claim == {"claimName": "zrelay-models", "readOnly": True}


def test_only_labelled_clients_connect(render: Render) -> None:
    (policy,) = kind_of(render("overlays/cuda"), "NetworkPolicy").values()
    spec = policy["spec"]
    (rule,) = spec["podSelector"]["matchExpressions"]
    assert set(rule["values"]) == DEFAULT_PORTS.keys()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == []
    (ingress,) = spec["ingress"]
    assert ingress["from"] == [{"podSelector": {"matchLabels": {"zrelay.org/client": "true"}}}]
    assert {port["port"] for port in ingress["ports"]} == set(DEFAULT_PORTS.values())


def test_tls(render: Render, health_names: dict[str, str], known_flags: Callable[[str], set[str]]) -> None:
    """As overlays/cuda, with given certificates, and probes on a port that the network policy keeps from other pods."""
    manifests = render("overlays/tls")
    (policy,) = kind_of(manifests, "NetworkPolicy").values()
    assert policy == kind_of(render("overlays/cuda"), "NetworkPolicy")["services"]
    for role, deployment in kind_of(manifests, "Deployment").items():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        flags = dict(zip(container["args"][2::2], container["args"][3::2], strict=True))
        port = DEFAULT_PORTS[role]
        assert flags.keys() <= known_flags(role)
        assert flags["--listen"] == f"0.0.0.0:{port}" and flags["--health-listen"] == f"0.0.0.0:{port + 200}"
        mount = next(one["mountPath"] for one in container["volumeMounts"] if one["name"] == "tls")
        files = {flags[f"--tls-{name}"] for name in ("certificate", "key", "ca")}
        assert files == {f"{mount}/{name}" for name in ("tls.crt", "tls.key", "ca.crt")}
        secret = next(one["secret"] for one in pod["volumes"] if one["name"] == "tls")
        assert secret == {"secretName": f"zrelay-{role}-tls", "defaultMode": 0o440}
        probes = {name: container[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")}
        ready = {"port": port + 200, "service": health_names[role]}
        assert probes == {"startup": ready, "readiness": ready, "liveness": {"port": port + 200, "service": LIVENESS}}
        assert port + 200 not in {one["port"] for one in policy["spec"]["ingress"][0]["ports"]}
    for service in kind_of(manifests, "Service").values():
        assert "appProtocol" not in service["spec"]["ports"][0], "h2c is plaintext"


def test_certificates(render: Render) -> None:
    manifests = render("overlays/tls")
    issuers, certificates = kind_of(manifests, "Issuer"), kind_of(manifests, "Certificate")
    assert issuers["zrelay"]["spec"]["ca"]["secretName"] == certificates["authority"]["spec"]["secretName"]
    assert certificates.keys() == {"authority", "client", *DEFAULT_PORTS}
    for role in DEFAULT_PORTS:
        spec = certificates[role]["spec"]
        assert spec["secretName"] == f"zrelay-{role}-tls" and spec["issuerRef"] == {"kind": "Issuer", "name": "zrelay"}
        assert {f"zrelay-{role}", f"zrelay-{role}.zrelay.svc"} <= set(spec["dnsNames"])
        assert {"server auth", "client auth"} <= set(spec["usages"])
    assert "server auth" not in certificates["client"]["spec"]["usages"]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_images_and_cards(render: Render, kind: str) -> None:
    with_card = set()
    for role, deployment in kind_of(render(f"overlays/{kind}"), "Deployment").items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"zrelay:{kind}"
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            with_card.add(role)
            assert deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert with_card == ({"encoder", "generator"} if kind == "cuda" else set())


def test_an_encoder_outside(render: Render) -> None:
    """The name stays, the pods go, and the endpoints are the Mac's."""
    manifests = render("examples/external-encoder")
    assert kind_of(manifests, "Deployment").keys() == {"vision", "generator"}
    assert kind_of(manifests, "PodDisruptionBudget").keys() == {"vision", "generator"}
    service = kind_of(manifests, "Service")["encoder"]["spec"]
    assert "selector" not in service
    (endpoints,) = kind_of(manifests, "EndpointSlice").values()
    assert endpoints["metadata"]["labels"]["kubernetes.io/service-name"] == "zrelay-encoder"
    (port,), (offered,) = endpoints["ports"], service["ports"]
    assert port["name"] == offered["name"]
    assert port["port"] == offered["port"] == offered["targetPort"] == DEFAULT_PORTS["encoder"]
