"""What KubeRay's API `ray.io/v1` allows in the manifests of `deploy/kuberay`.

Names and types follow the field reference in KubeRay's documentation; only what the manifests may
use is here, and anything else is refused. Pods are Kubernetes' own: their templates are checked
against its published schemas, which `kubernetes-validate` brings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import kubernetes_validate
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

KUBERNETES = "1.37"


def check_object(document: dict[str, Any]) -> None:
    """Raises for an object of Kubernetes' own that its schema refuses."""
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def _pod_template(template: dict[str, Any]) -> dict[str, Any]:
    about = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}}
    try:
        check_object({**about, "template": template})
    except kubernetes_validate.ValidationError as error:
        raise ValueError(str(error)) from None
    return template


PodTemplate = Annotated[dict[str, Any], AfterValidator(_pod_template)]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: DnsName
    namespace: DnsName | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class HeadGroup(Strict):
    rayStartParams: dict[str, str] = {}
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: str
    replicas: NonNegativeInt = 0
    minReplicas: NonNegativeInt = 0
    maxReplicas: NonNegativeInt
    numOfHosts: PositiveInt = 1
    idleTimeoutSeconds: PositiveInt | None = None
    rayStartParams: dict[str, str] = {}
    template: PodTemplate


class Auth(Strict):
    mode: Literal["token", "disabled"]


class Autoscaler(Strict):
    idleTimeoutSeconds: PositiveInt = 60
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    version: Literal["v1", "v2"] = "v2"


class Cluster(Strict):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str = ""
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]
    backoffLimit: NonNegativeInt = 0
    activeDeadlineSeconds: PositiveInt | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: NonNegativeInt = 0
    rayClusterSpec: Cluster


class Upgrade(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ServiceSpec(Strict):
    serveConfigV2: str
    excludeHeadPodFromServeSvc: bool = False
    upgradeStrategy: Upgrade | None = None
    rayClusterConfig: Cluster


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec
