"""The files for `ray up`: what Ray's launcher checks, and what must hold for safety."""

import re
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from pydantic import ValidationError
from support import kuberay

from nnit_dist.core.storage import DEFAULT

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "cluster").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def cluster(request, monkeypatch) -> dict:
    """A file as Ray's launcher takes it: filled up with defaults and validated."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    config = prepare_config(yaml.safe_load(request.param.read_text()))
    validate_config(config)
    return config


def commands(cluster: dict) -> list[str]:
    return [line for name, lines in cluster.items() if name.endswith("commands") for line in lines]


def starts(cluster: dict) -> list[str]:
    return [line for line in commands(cluster) if "ray start" in line]


def test_every_node_asks_for_the_token(cluster):
    assert len(starts(cluster)) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts(cluster))
    assert any(path.endswith(".ray/auth_token") for path in cluster["file_mounts"])


def test_every_node_keeps_ray_in_a_directory_of_its_account_alone(cluster):
    for start in starts(cluster):
        script = start.partition("ray start")[0] + "stat -c %a $RAY_TMPDIR"
        made = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        assert made.stdout.strip() == "700", made
        assert "--head" in start or "--temp-dir=$RAY_TMPDIR/ray" in start


def test_dashboards_listen_to_their_own_machine_alone(cluster):
    (head,) = (line for line in starts(cluster) if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in yaml.dump(cluster)


def test_what_is_installed_is_pinned(cluster):
    text = yaml.dump(cluster)
    images = re.findall(r"rayproject/ray:(\S+)", text)
    assert all(image.startswith(f"{ray.__version__}-py311-") for image in images)
    assert "ray-wheels" not in text  # the launcher's defaults install a nightly build
    installs = [line for line in cluster["setup_commands"] if "pip install" in line]
    assert installs
    assert all("constraints.txt" in line for line in installs)
    if "docker" in cluster:  # the launcher's default would take versions back
        assert cluster["head_setup_commands"] == cluster["setup_commands"]


def test_storage_is_shared_and_the_same_on_every_node(cluster):
    places = {re.findall(rf"{DEFAULT}=(\S+?);?\s", f"{line} ")[0] for line in starts(cluster)}
    assert len(places) == 1
    assert re.match(r"s3://|gs://|/shared/", places.pop())


def resources(name: str) -> list[dict]:
    return list(yaml.safe_load_all((ROOT / "cluster" / "kuberay" / name).read_text()))


def pods(name: str) -> dict[str, dict]:
    """The groups of a RayCluster, by name."""
    (spec,) = (one["spec"] for one in resources(name) if one["kind"] == "RayCluster")
    return {"head": spec["headGroupSpec"]} | {g["groupName"]: g for g in spec["workerGroupSpecs"]}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_would_take_it(name):
    for resource in resources(name):
        kuberay.validate(resource)


@pytest.mark.parametrize(
    "where",
    ["spec", "spec.headGroupSpec", "spec.headGroupSpec.template.spec", "spec.autoscalerOptions",
     "spec.workerGroupSpecs.1.template.spec.containers.0.resources"],
)  # fmt: skip
def test_kubernetes_would_refuse_a_field_that_does_not_exist(where):
    (_, cluster) = resources("raycluster.yaml")
    place = cluster
    for key in where.split("."):
        place = place[int(key) if key.isdigit() else key]
    place["replica"] = "1"
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        kuberay.validate(cluster)


def test_pods_are_as_the_nodes_of_other_clusters():
    groups = pods("raycluster.yaml")
    text = (ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text()
    assert f"rayVersion: {ray.__version__}" in text
    assert "authOptions: {mode: token}" in text
    assert groups["head"]["serviceType"] == "ClusterIP"
    assert groups["head"]["rayStartParams"] == {"num-cpus": "0"}
    assert groups["training"]["labels"] == {"nnit.dev/role": "training"}
    assert "labels" not in groups["simulation"]
    assert groups["simulation"]["minReplicas"] == groups["training"]["minReplicas"] == 0
    for name, group in groups.items():
        assert "labels" not in group["rayStartParams"]  # the operator refuses them there
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "nnit"}}]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "training")


def test_a_job_selects_the_cluster_beside_it():
    (job,) = resources("rayjob.yaml")
    assert job["kind"] == "RayJob"
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "nnit"}
    config = re.search(r"configs/\S+\.yaml", job["spec"]["entrypoint"])
    assert (ROOT / config.group()).exists()


def test_the_image_has_what_is_pinned_here():
    import sapien.physx

    text = (ROOT / "cluster" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{ray.__version__}-py311-" in text
    assert f"ARG PHYSX_VERSION={sapien.physx.version()}\n" in text
    assert "sha256sum -c" in text


def test_no_secret_is_in_a_file():
    for path in filter(Path.is_file, (ROOT / "cluster").rglob("*")):
        assert not re.search(r"AKIA|PRIVATE KEY|auth_token: [^~]", path.read_text())


def test_nodes_that_simulate_come_and_go_and_those_that_train_are_kept_from_simulators(cluster):
    types = cluster["available_node_types"]
    if cluster["provider"]["type"] == "local":
        return
    assert types["simulation"]["min_workers"] == types["training"]["min_workers"] == 0
    assert "spot" in str(types["simulation"]["node_config"]).lower()
    assert types["training"]["labels"] == {"nnit.dev/role": "training"}
    assert types["training"]["resources"]["GPU"] == 1
    assert types[cluster["head_node_type"]]["resources"]["CPU"] == 0
