"""A model version as MLflow's pyfunc: an `MLmodel` that finds the version again and answers.

    model = mlflow.pyfunc.load_model("models:/archipelago@newest")
    model.predict(["seven.png"], params={"top_k": 3})

Nothing that was learned is copied into it. It names the run folder and the manifest, and, where
that folder is not at hand, MLflow's own copies of the groups: one a group, not one a version.
MLflow is imported with this module, torch by the first model that is loaded.
"""

from __future__ import annotations

import base64
import io
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import FLAVOR_NAME, PythonModel
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.export.inputs import picture
from archipelago.pipeline.export.minimal import write_minimal
from archipelago.pipeline.learned import Answer
from archipelago.pipeline.store import Folder, GroupRef, RunFolder, names
from archipelago.pipeline.store.groups import COMMIT
from archipelago.pipeline.store.run import RUN_FILE

if TYPE_CHECKING:
    from archipelago.pipeline.learned.model import LearnedModel

PACKAGE = "archipelago-cl"
CODE = '''"""How MLflow loads this model: by the package `archipelago`, which must be installed."""

from archipelago.pipeline.export.pyfunc import Predictor
from mlflow.models import set_model

set_model(Predictor())
'''
PARAMS = ParamSchema(
    [
        ParamSpec("candidates", DataType.string, [], shape=(-1,)),  # none = all learned classes
        ParamSpec("task", DataType.string, ""),  # empty = the model recognises the domain
        ParamSpec("top_k", DataType.long, 1),
    ]
)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType())]),  # one column of any name, or a list
    outputs=Schema(
        [
            ColSpec(DataType.string, "label", required=False),
            ColSpec(DataType.double, "probability", required=False),
            ColSpec(DataType.string, "domain", required=False),
            ColSpec(DataType.boolean, "unseen"),
        ]
    ),
    params=PARAMS,
)


class Predictor(PythonModel):
    """Answers images as `LearnedModel` does, in MLflow's terms.

    `model_config` of `load_model` may set `device` (`auto`, `cpu`, `cuda`) and `backbone`, where
    the run's own lies elsewhere on this machine.
    """

    def load_context(self, context: Any) -> None:
        """Open the version that the MLmodel names."""
        self._model = open_version(context.model_config)
        self._mutex = threading.Lock()  # MLflow's server asks from several threads

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row an image: `label`, `probability`, `domain` (None where none is recognised) and
        `unseen`; with `top_k` above 1 also lists, `labels` and `probabilities`.

        Args:
            context: MLflow's; not used.
            model_input: one column of encoded bytes, base64, paths or PIL images.
            params: `candidates`, `task` and `top_k`.
        """
        asked = params or {}
        top_k = int(asked.get("top_k", 1))
        try:
            if top_k < 1:
                raise UserError(f"top_k={top_k}: must be at least 1")
            images = [picture(value, place) for place, value in enumerate(model_input.iloc[:, 0])]
            with self._mutex:
                answers = self._model.answer(
                    images,
                    candidates=[str(name) for name in asked.get("candidates", ())] or None,
                    task=asked.get("task") or None,
                    top_k=top_k,
                )
        except UserError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        rows = pd.DataFrame([_row(answer) for answer in answers], columns=list(ROW))
        if top_k > 1:
            rows["labels"] = [[name for name, _ in answer.classes] for answer in answers]
            rows["probabilities"] = [[p for _, p in answer.classes] for answer in answers]
        return rows


ROW = ("label", "probability", "domain", "unseen")


def _row(answer: Answer) -> tuple[str | None, float | None, str | None, bool]:
    label, probability = answer.classes[0] if answer.classes else (None, None)
    return label, probability, answer.task, answer.unseen


# -- to find it again ------------------------------------------------------------------------


def open_version(config: Mapping[str, Any]) -> LearnedModel:
    """The model that an MLmodel names.

    Args:
        config: `run`, `manifest` and its `sha256`; `groups`, each with `stage`, `task`, `folder`,
            `sha256` and `model` (its id in MLflow); `tracked`, the MLflow run that holds run.json
            and the basis; `device` and `backbone`.

    Raises:
        UserError: neither the run folder nor MLflow has it any more.
    """
    from archipelago.pipeline.learned.model import LearnedModel

    how: dict[str, Any] = {
        "device": config.get("device") or "auto",
        "backbone": config.get("backbone"),
    }
    if _is_here(config):
        return LearnedModel.open(config["run"], config["manifest"], **how)
    with tempfile.TemporaryDirectory(prefix="archipelago-") as place:
        try:
            _fetch(config, Path(place))
        except (MlflowException, OSError, IntegrityError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"manifest {config['manifest']} of {config['run']}: the run folder is not here, and"
                f" MLflow cannot give its groups ({why})"
            ) from None
        return LearnedModel.open(str(Path(place) / "run"), **how)


def _is_here(config: Mapping[str, Any]) -> bool:
    """Whether the run folder can be read here and its manifest is the one meant."""
    try:
        run = RunFolder.open(config["run"])
        return run.models.read(config["manifest"]).sha256 == config["sha256"]
    except (UserError, IntegrityError, OSError):
        return False


def _fetch(config: Mapping[str, Any], place: Path) -> None:
    """A minimal run folder, `run`, from MLflow's artifacts."""
    refs = {
        GroupRef(item["stage"], item["task"], item["folder"], item["sha256"]): item["model"]
        for item in config["groups"]
    }

    def get(uri: str, name: str) -> Path:
        target = place / name
        target.mkdir()
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target)))

    def files(ref: GroupRef) -> dict[str, bytes]:
        found = get(f"models:/{refs[ref]}", f"group-{ref.stage}")
        return {f.name: f.read_bytes() for f in found.iterdir() if f.name != COMMIT}

    document = Folder(get(f"runs:/{config['tracked']}/{RUN_FILE}", "document").parent)
    basis = get(f"runs:/{config['tracked']}/{names.BASIS}", "basis").read_bytes()
    target = RunFolder(place / "run")
    write_minimal(target, document.read_json(RUN_FILE), basis, refs, files)


# -- to store it -----------------------------------------------------------------------------


def save(folder: Path) -> Model:
    """Write the files that all versions share; returns the MLmodel, to be told which it is."""
    code = folder.parent / "model.py"
    code.write_text(CODE)
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(code),
        signature=SIGNATURE,
        input_example=([example()], {"top_k": 1}),
        pip_requirements=[PACKAGE],
        model_config={},
    )
    return Model.load(str(folder))


def name_version(model: Model, folder: Path, model_id: str, config: Mapping[str, Any]) -> None:
    """Say in the MLmodel of `folder` which version it is, see `open_version`."""
    flavor = model.flavors[FLAVOR_NAME]
    flavor["config"] = {"device": "auto", "backbone": None, **config}
    flavor["model_code_path"] = "model.py"
    model.model_id = model_id
    model.save(str(folder / "MLmodel"))


def example() -> str:
    """A flat grey picture in base64: an example that nobody's images went into."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
