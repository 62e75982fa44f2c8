"""A tiny data set and network, so that a whole run takes a tenth of a second."""

import dataclasses

import pytest

from convlens import data
from convlens.training import Recipe
from convlens.training import session as session_module


@pytest.fixture(scope="session")
def small_digits():
    whole = data.open("digits", size=16)
    splits = {name: whole.splits[name][:count] for name, count in (("train", 96), ("dev", 40), ("test", 40))}
    return dataclasses.replace(whole, splits=splits)


@pytest.fixture
def recipe(monkeypatch, small_digits):
    """A recipe whose data, ``digits``, is the small set."""
    monkeypatch.setattr(session_module.data, "open", lambda source, options=None: small_digits)
    monkeypatch.setenv("CONVLENS_PLAN", "estimate")
    return Recipe(data="digits", model="lenet5", epochs=2, batch_size=16, threads=1, precision="float32")
