"""Typed settings of a run: what is legal. Values and their trade-offs live in `conf/`.

Every model forbids unknown keys, so a misspelt key is refused by its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)
from pydantic_core import to_jsonable_python

from archipelago.pipeline.identifier_settings import (
    AnyIdentifier,
    IdentifierSettings,
    MultimodalSettings,
    all_fields,
)
from archipelago.pipeline.strict import Strict

Fraction = Field(ge=0.0, le=1.0)
LARGEST = 3e38  # that a weight can hold: numbers are kept in 32 bits
SEEDS = 2**32  # numpy's and torch's generators take no larger ones


class StreamSettings(Strict):
    """Where the domains come from, and in which order they are learned."""

    reader: str
    root: str | None = None
    order: list[str] | None = None
    stages: list[list[str]] | None = None
    held_out: float = Field(0.1, gt=0.0, lt=0.5)
    max_pixels: PositiveInt = 50_000_000
    options: dict[str, Any] = Field(default_factory=dict)


class BackboneSettings(Strict):
    """The frozen CLIP: an open_clip architecture, `clip-tiny`, `local-dir:` or `hf-hub:`."""

    name: str
    pretrained: str | None = None
    image_size: PositiveInt | None = None
    attention: Literal["auto", "math", "flash", "efficient"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    inference: Literal["fp32", "tf32", "bf16"] = "fp32"
    basis: str | None = None


PRESETS = {
    "coarse": {"count": 16, "active": 3, "shared_count": 1, "rank": 4},
    "medium": {"count": 32, "active": 6, "shared_count": 2, "rank": 2},
    "fine": {"count": 64, "active": 12, "shared_count": 4, "rank": 1},
}
"""ASE's (N/k/S/r) at equal parameters, N*r = 64: more experts of lower rank."""


class ExpertSettings(Strict):
    """Shape of an expert group (method: TRGE eq. of the MoE layer, ASE's N/k/S/r).

    A preset sets count, active, shared_count and rank; with `shared: none` its shared experts
    become routed ones, so that as many experts are active: k_tot = k + S.
    """

    preset: Literal["coarse", "medium", "fine"] | None = None
    count: PositiveInt = 4
    rank: PositiveInt = 16
    active: NonNegativeInt = 0
    shared_count: NonNegativeInt = 0
    shared: Literal["none", "naive", "adaptive"] = "none"
    normalise: Literal["pre", "post"] = "post"
    kind: Literal["lora", "bottleneck"] = "lora"
    scale: float = Field(4.0, ge=-LARGEST, le=LARGEST)
    first_block: NonNegativeInt | Literal["half"] = "half"
    image: Literal["on", "off"] = "on"
    text: Literal["on", "off"] = "on"
    router: Literal["sample", "token"] = "sample"
    noise: NonNegativeFloat = 0.0
    information: NonNegativeFloat = 1e-3

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") not in PRESETS:
            return values
        shape = dict(PRESETS[values["preset"]])
        if values.get("shared", "none") == "none":
            shape["active"] += shape.pop("shared_count")
            shape["shared_count"] = 0
        for key, value in shape.items():
            given = values.get(key, value)
            if given not in (value, cls.model_fields[key].default):
                raise ValueError(
                    f"{key}={given} contradicts preset={values['preset']} ({key}={value});"
                    " leave one of the two out"
                )
        return {**values, **shape}

    @model_validator(mode="after")
    def _consistent(self) -> ExpertSettings:
        if self.image == self.text == "off":
            raise ValueError("image and text are both off: there is nothing to learn")
        if self.shared != "none" and not self.shared_count:
            raise ValueError(f"shared={self.shared} needs a preset or shared_count above 0")
        if self.shared == "none" and self.shared_count:
            raise ValueError("shared_count needs shared=naive or shared=adaptive")
        if self.shared_count >= self.count:
            raise ValueError("shared_count must be lower than count")
        if self.active > self.count - self.shared_count:
            routed = self.count - self.shared_count
            raise ValueError(
                f"active={self.active} is more than there are to choose from, {routed}"
            )
        return self


class NeighbourSettings(Strict):
    """Which earlier groups a new group may borrow from (inter-group routing)."""

    count: NonNegativeInt = 2
    max_distance: NonNegativeFloat = 0.8
    temperature: float = Field(0.5, gt=0.0)
    mix: Literal["residual", "softmax"] = "residual"
    min_gain: float = 0.0


class UnseenSettings(Strict):
    """Fusion with frozen CLIP for images of no learned task."""

    groups: PositiveInt = 2
    lambda_max: Annotated[float, Fraction] | Literal["auto"] = "auto"
    lambda_steps: NonNegativeFloat = 2.0


class MethodSettings(Strict):
    """How the stream is learned. `options` belong to the method's own file."""

    name: str
    neighbours: NeighbourSettings = NeighbourSettings()
    unseen: UnseenSettings = UnseenSettings()
    options: dict[str, Any] = Field(default_factory=dict)


class TrainingSettings(Strict):
    """Optimisation of one stage."""

    steps: PositiveInt = 500
    max_epochs: NonNegativeInt = 16
    batch_size: PositiveInt = 64
    learning_rate: float = Field(5e-3, gt=0.0, le=LARGEST)
    weight_decay: NonNegativeFloat = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    polyak: float = Field(0.0, ge=0.0, lt=1.0)
    warmup: NonNegativeInt = 40
    label_smoothing: float = Field(0.2, ge=0.0, lt=1.0)
    negatives: NonNegativeInt = 256
    weighting: Literal["equal", "uncertainty"] = "equal"
    head_channels: PositiveInt = 32
    clip_norm: NonNegativeFloat = 1.0
    views: PositiveInt = 2
    crop: tuple[float, float] = (0.8, 1.0)
    flip: bool = False
    cache_gib: NonNegativeFloat = 4.0
    validate_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 100

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        low, high = self.crop
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(
                f"crop=[{low:g},{high:g}]: expected shares of an image's area, [low,high] with"
                " 0 < low <= high <= 1"
            )
        return self


class EvaluationSettings(Strict):
    """What is measured after each stage."""

    batch_size: PositiveInt = 64
    bootstrap: PositiveInt = 1000
    references: list[str] = Field(default_factory=list)
    references_in: Literal["train", "driver"] = "train"


class WorkerSettings(Strict):
    """Resources of one kind of worker; fractions let small machines run everything at once."""

    num_workers: NonNegativeInt = 1
    num_cpus: NonNegativeFloat = 0.5
    num_gpus: NonNegativeFloat = 0.0
    threads: NonNegativeInt = 0
    memory_gib: NonNegativeFloat = 0.0


class TrainWorkerSettings(WorkerSettings):
    """Workers that train: `num_workers` share a stage, `lanes` stages train side by side."""

    lanes: PositiveInt = 1


class IdentifyPoolSettings(Strict):
    """Replicas of the multimodal model; none are started for identifiers that do not look."""

    min_replicas: PositiveInt = 1
    max_replicas: NonNegativeInt = 1
    num_cpus: NonNegativeFloat = 0.5
    num_gpus: NonNegativeFloat = 0.0
    threads: NonNegativeInt = 0
    memory_gib: NonNegativeFloat = 0.0
    lease_s: PositiveInt = 20

    @model_validator(mode="after")
    def _consistent(self) -> IdentifyPoolSettings:
        if 0 < self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be 0 or at least min_replicas")
        return self


class ClusterSettings(Strict):
    """Where things run, and with how much."""

    address: str | None = None
    logical_cpus: PositiveInt = 8
    object_store_mib: PositiveInt = 400
    dashboard: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    train: TrainWorkerSettings = TrainWorkerSettings()
    encode: WorkerSettings = WorkerSettings()
    data: WorkerSettings = WorkerSettings(num_cpus=0.25)
    identify: IdentifyPoolSettings = IdentifyPoolSettings()
    max_failures: NonNegativeInt = 2
    timeout_s: PositiveInt = 120
    wait_s: NonNegativeInt = 0
    cache_dir: str | None = None
    cache_gib: NonNegativeFloat = 20.0


class TrackingSettings(Strict):
    """MLflow lineage. `uri: null` keeps a sqlite file beside the run."""

    enabled: bool = True
    uri: str | None = None
    artifacts: str | None = None
    experiment: str = "archipelago"
    model: str = "archipelago"
    timeout_s: PositiveInt = 5
    retries: NonNegativeInt = 1


class CanarySettings(Strict):
    """What a new generation must show on stored images before it may answer."""

    floor: float = Field(0.05, ge=0.0, le=1.0)
    tolerance: float = Field(1e-3, gt=0.0)
    images: PositiveInt = 4


class ServingSettings(Strict):
    """The HTTP endpoint: where it listens, how much it holds, what it refuses."""

    name: str = "archipelago"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    url: str | None = None
    ingresses: PositiveInt = 1
    replicas_min: PositiveInt = 1
    replicas_max: PositiveInt = 2
    num_cpus: NonNegativeFloat = 0.2
    num_gpus: NonNegativeFloat = 0.0
    threads: NonNegativeInt = 1
    batch_size: PositiveInt = 32
    batch_wait_ms: NonNegativeFloat = 2.0
    queue: PositiveInt = 64
    timeout_s: PositiveInt = 30
    consult_s: NonNegativeFloat = 0.5
    abstain: float | None = Field(None, gt=0.0, lt=1.0)
    publish_timeout_s: PositiveInt = 120
    poll_s: float = Field(2.0, gt=0.0)
    max_body_mib: PositiveInt = 16
    max_images: PositiveInt = 32
    max_pixels: PositiveInt = 50_000_000
    max_labels: PositiveInt = 256
    decoders: PositiveInt = 2
    decode_mib: int = Field(512, ge=64)
    decode_s: float = Field(10.0, gt=0.0)
    examples: Literal["auto", "on", "off"] = "auto"
    dependents: Literal["remix", "retrain"] = "remix"
    canary: CanarySettings = CanarySettings()

    @model_validator(mode="after")
    def _consistent(self) -> ServingSettings:
        if self.replicas_max < self.replicas_min:
            raise ValueError("replicas_max must not be lower than replicas_min")
        return self


class Settings(Strict):
    """Everything a run needs, resolved."""

    run_dir: str | None = None
    seed: int = Field(0, ge=0, lt=SEEDS)
    stream: StreamSettings
    backbone: BackboneSettings
    method: MethodSettings
    experts: ExpertSettings = ExpertSettings()
    training: TrainingSettings = TrainingSettings()
    identifier: AnyIdentifier
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()
    serving: ServingSettings = ServingSettings()
    serve: Literal["on", "off"] = "off"
    publish: Literal["auto", "candidate"] = "auto"

    @property
    def multimodal(self) -> MultimodalSettings:
        """The identifier's section, of one that asks a multimodal model."""
        assert isinstance(self.identifier, MultimodalSettings), f"{self.identifier.name} asks none"
        return self.identifier


def fields_of(section: Any) -> dict[str, Any]:
    """The fields of a type of settings; of `identifier`, those of all identifiers."""
    if section is IdentifierSettings:
        return all_fields()
    return dict(getattr(section, "model_fields", {}))


def default_of(key: str) -> Any:
    """The value of a dotted key where nothing sets it, in JSON's types; None where it has none."""
    model: Any = Settings
    field = None
    for part in key.split("."):
        fields = fields_of(model)
        if part not in fields:
            return None
        field = fields[part]
        model = field.annotation
    if field is None or field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True))
