"""Fields of KubeRay's custom resources (ray.io/v1), written after its types and its reference.

Not its CRD, and of no one release: a field that is in none of them is refused, as by a server that
validates strictly. Pods are those of Kubernetes' own client.
https://ray-project.github.io/kuberay/reference/api/
"""

from typing import Any, Literal

from kubernetes.client import (
    V1ConfigMap,
    V1EnvFromSource,
    V1EnvVar,
    V1ObjectMeta,
    V1PodTemplateSpec,
    V1ResourceRequirements,
    V1SecurityContext,
    V1Service,
    V1VolumeMount,
)
from pydantic import BaseModel

Texts = dict[str, str]
Config = dict[str, Any]  # not looked into: nothing of ours is there


class AuthOptions(BaseModel):
    mode: Literal["disabled", "token"] = "token"


class AutoscalerOptions(BaseModel):
    resources: V1ResourceRequirements | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    securityContext: V1SecurityContext | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None
    env: list[V1EnvVar] | None = None
    envFrom: list[V1EnvFromSource] | None = None
    volumeMounts: list[V1VolumeMount] | None = None


class HeadGroup(BaseModel):
    template: V1PodTemplateSpec
    headService: V1Service | None = None
    enableIngress: bool | None = None
    resources: Texts | None = None
    labels: Texts | None = None
    rayStartParams: Texts | None = None
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None


class WorkerGroup(BaseModel):
    groupName: str
    template: V1PodTemplateSpec
    replicas: int | None = None
    minReplicas: int
    maxReplicas: int
    idleTimeoutSeconds: int | None = None
    numOfHosts: int | None = None
    resources: Texts | None = None
    labels: Texts | None = None
    rayStartParams: Texts | None = None
    scaleStrategy: Config | None = None
    suspend: bool | None = None


class ClusterSpec(BaseModel):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] | None = None
    rayVersion: str | None = None
    authOptions: AuthOptions | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    gcsFaultToleranceOptions: Config | None = None
    headServiceAnnotations: Texts | None = None
    managedBy: str | None = None
    suspend: bool | None = None
    upgradeStrategy: Config | None = None


class JobSpec(BaseModel):
    entrypoint: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    activeDeadlineSeconds: int | None = None
    backoffLimit: int | None = None
    clusterSelector: Texts | None = None
    deletionStrategy: Config | None = None
    jobId: str | None = None
    managedBy: str | None = None
    metadata: Texts | None = None
    preRunningDeadlineSeconds: int | None = None
    rayClusterSpec: ClusterSpec | None = None
    runtimeEnvYAML: str | None = None
    shutdownAfterJobFinishes: bool | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = (
        None
    )
    submitterConfig: Config | None = None
    submitterPodTemplate: V1PodTemplateSpec | None = None
    suspend: bool | None = None
    ttlSecondsAfterFinished: int | None = None


class RayCluster(BaseModel):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: V1ObjectMeta
    spec: ClusterSpec


class RayJob(BaseModel):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: V1ObjectMeta
    spec: JobSpec


def validate(resource: dict[str, Any]) -> None:
    """Raises pydantic.ValidationError, or KeyError for a kind that is none of these."""
    kinds = {"RayCluster": RayCluster, "RayJob": RayJob, "ConfigMap": V1ConfigMap}
    kinds[resource["kind"]].model_validate(resource, extra="forbid", by_alias=True)
