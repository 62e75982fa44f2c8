"""The record of a model file: everything besides the weights that a prediction or a reader needs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convlens import __version__
from convlens.data import Preprocessing
from convlens.errors import ConvlensError, ModelFileError, PathError
from convlens.modelfile.container import read_container, read_record, write_container

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMAT_VERSION",
    "KIND",
    "ModelCard",
    "TestEvaluation",
    "add_evaluation",
    "build_network",
    "model_path",
    "now",
    "read_card",
    "read_model",
    "write_model",
]

KIND = "convlens-model"
FORMAT_VERSION = 1


class TestEvaluation(BaseModel):
    """One look at labelled data after training; each is counted, so that nobody picks the best of many unseen."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    model_config = ConfigDict(frozen=True)

    date: str
    """UTC, ISO 8601."""
    data: str
    """What was evaluated, as the user named it."""
    fingerprint: str
    """Fingerprint of that data."""
    samples: int
    accuracy: float
    """0–1. For multi-label data: the part of samples with every label right."""
    loss: float
    """Mean cross-entropy in nats."""


class ModelCard(BaseModel):
    """What the file says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: dict[str, Any]
    """Arguments of `convlens.models.create`."""
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = Field(min_length=1)
    multilabel: bool = False
    data: dict[str, Any] = {}
    """``source``, ``fingerprint``, and the number of ``train``, ``dev`` and ``test`` samples."""
    recipe: dict[str, Any] = {}
    training: dict[str, Any] = {}
    """``epochs``, ``steps``, ``seconds``, ``dev_accuracy``, ``dev_loss``, ``device``, ``precision`` …"""
    test_evaluations: tuple[TestEvaluation, ...] = ()
    """Every evaluation on the test part, oldest first."""
    test_accuracy: float | None = None
    """Accuracy of the first evaluation on the test part, 0–1; None until there is one."""
    plans: dict[str, Any] = {}
    """Kernel plans that the run used, so that a later process computes the same bits."""
    diagnosis: dict[str, Any] = {}
    convlens_version: str = __version__
    created: str = ""
    """UTC, ISO 8601."""


def now() -> str:
    """The present time as UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def model_path(path: str | Path) -> Path:
    """The model file that ``path`` means: itself, or ``model.safetensors`` in a run directory.

    Raises:
        PathError: no such path, or a folder without a model file; the text says what to do.
    """
    path = Path(path)
    if path.is_dir():
        model = path / "model.safetensors"
        if model.exists():
            return model
        if (path / "recipe.toml").exists():
            raise PathError(
                f"{path}: this run has not finished, so it has no model.safetensors yet. "
                f"Finish it with: convlens train --out {path} --resume"
            )
        raise PathError(f"{path}: no model.safetensors in this folder. `convlens runs` lists the runs.")
    if not path.exists():
        raise PathError(f"{path}: no such run or model file. `convlens runs` lists the runs.")
    return path


def write_model(path: Path, state: dict[str, torch.Tensor], card: ModelCard) -> None:
    """Write a model file, atomically.

    Args:
        path: the file to make or replace.
        state: the network's ``state_dict``.
        card: its record.

    Raises:
        StorageError: no space, or no permission.
    """
    write_container(path, KIND, FORMAT_VERSION, state, card.model_dump(mode="json"))


def read_card(path: str | Path) -> ModelCard:
    """The record of a run's model or of a model file, every byte checked; tensors are not loaded.

    Raises:
        PathError: no such file.
        ModelFileError: not ours, newer, truncated or damaged.
    """
    file = model_path(path)
    return _card(read_record(file, KIND, FORMAT_VERSION), file)


def read_model(path: str | Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """``state_dict`` and record of a run's model or of a model file, every byte checked.

    Raises:
        PathError: no such file.
        ModelFileError: not ours, newer, truncated or damaged.
    """
    file = model_path(path)
    state, record = read_container(file, KIND, FORMAT_VERSION)
    return state, _card(record, file)


def build_network(state: dict[str, torch.Tensor], card: ModelCard, path: str | Path) -> torch.nn.Module:
    """The network that ``card`` describes with the weights of ``state``, in evaluation mode.

    Raises:
        ModelFileError: the architecture is unknown here, or the weights do not fit it.
    """
    import torch

    from convlens import models

    try:
        with torch.device("meta"):
            described = models.create(**card.architecture)
        _check_weights(described.state_dict(), state, path)
        network = models.create(**card.architecture)
    except (ConvlensError, TypeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path}: its network cannot be built here: {error}") from None
    network.load_state_dict(state)
    return network.eval()


def add_evaluation(path: str | Path, evaluation: TestEvaluation) -> ModelCard:
    """Count one more evaluation on the test part in the model file, and return the new record.

    Raises:
        StorageError: the file cannot be rewritten; an evaluation that cannot be counted must not be shown.
    """
    state, card = read_model(path)
    first = card.test_accuracy if card.test_accuracy is not None else evaluation.accuracy
    card = card.model_copy(
        update={"test_evaluations": (*card.test_evaluations, evaluation), "test_accuracy": first}
    )
    write_model(model_path(path), {name: tensor.clone() for name, tensor in state.items()}, card)
    return card


def _card(record: dict[str, Any], path: Path) -> ModelCard:
    try:
        return ModelCard.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(f"{path}: damaged: {place} in its record is wrong ({first['msg']}).") from None


def _check_weights(expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Names, shapes and kinds of numbers agree; checked on meta tensors, so that absurd sizes cost no memory."""
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        names = ", ".join((missing or unknown)[:3])
        raise ModelFileError(f"{path}: its weights {'lack' if missing else 'have unknown'} {names}.")
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise ModelFileError(
                f"{path}: {name}: its network expects {tuple(tensor.shape)}, "
                f"the file holds {tuple(state[name].shape)}."
            )
        if _number_kind(tensor) != _number_kind(state[name]):
            raise ModelFileError(
                f"{path}: {name}: its network expects {tensor.dtype} values, the file holds {state[name].dtype}."
            )


def _number_kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
