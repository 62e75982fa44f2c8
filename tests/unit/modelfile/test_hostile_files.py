"""Hostile files, made with Hypothesis: the right answer or our own error, never another exception.

Flipped bits of model files and pictures are in `test_container` and `data/test_damage`. Here the checksum is
right and the content is not, as from somebody who means harm.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convlens import models
from convlens.data import Preprocessing
from convlens.data.formats.idx import read_idx
from convlens.data.tables import read_table
from convlens.errors import BadFileError, ConvlensError
from convlens.modelfile import load
from convlens.modelfile.card import FORMAT_VERSION, KIND, ModelCard
from convlens.modelfile.container import write_container
from convlens.training.recipe import read_recipe

ARCHITECTURE = {"name": "lenet5", "in_channels": 1, "num_classes": 2, "input_size": [16, 16]}
NET = models.create(**ARCHITECTURE)
CARD = ModelCard(
    architecture=ARCHITECTURE,
    preprocessing=Preprocessing(kind="image", channels=1, size=(16, 16)),
    class_names=("a", "b"),
).model_dump(mode="json")

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUMBERS = st.one_of(
    st.integers(-2, 70), st.sampled_from([2**31, 2**40, 2**63, 10**30, -(2**63)]), st.floats(), st.booleans()
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=6), st.sampled_from(sorted(models.names()))),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


def ours_or_right(act):
    """Whether it was answered; anything but our own errors comes through."""
    try:
        act()
    except ConvlensError as error:
        assert str(error)
        return False
    return True


def answers(path):
    predictor = load(path)
    predictor.predict(np.zeros((16, 16), np.uint8))


@quick
@given(key=st.sampled_from([*ARCHITECTURE, "width", "depth", "dropout", "self", "bias"]), value=VALUES)
def test_hostile_architecture(tmp_path, key, value):
    path = tmp_path / "m.safetensors"
    write_container(
        path, KIND, FORMAT_VERSION, NET.state_dict(), CARD | {"architecture": ARCHITECTURE | {key: value}}
    )
    ours_or_right(lambda: load(path))


@quick
@given(key=st.sampled_from(sorted(CARD["preprocessing"])), value=VALUES)
def test_hostile_preprocessing(tmp_path, key, value):
    path = tmp_path / "m.safetensors"
    form = CARD["preprocessing"] | {key: value}
    write_container(path, KIND, FORMAT_VERSION, NET.state_dict(), CARD | {"preprocessing": form})
    ours_or_right(lambda: load(path))


@quick
@given(key=st.sampled_from(sorted(set(CARD) - {"architecture", "preprocessing"})), value=VALUES)
def test_hostile_record(tmp_path, key, value):
    path = tmp_path / "m.safetensors"
    write_container(path, KIND, FORMAT_VERSION, NET.state_dict(), CARD | {key: value})
    ours_or_right(lambda: answers(path))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.float64, torch.complex64, torch.bool, torch.int64, torch.bfloat16, torch.uint8]
)
def test_weights_of_another_type(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    state = {name: torch.ones_like(tensor).to(dtype) for name, tensor in NET.state_dict().items()}
    write_container(path, KIND, FORMAT_VERSION, state, CARD)
    assert ours_or_right(lambda: answers(path)) == dtype.is_floating_point


@settings(quick, max_examples=300)
@given(content=st.binary(max_size=80))
def test_hostile_idx(tmp_path, content):
    path = tmp_path / "x"
    for prefix in (b"", b"\0\0\x08", b"\0\0\x0d\x02", b"\x1f\x8b"):
        path.write_bytes(prefix + content)
        ours_or_right(lambda: read_idx(path))
    path.write_bytes(gzip.compress(b"\0\0\x08" + content, 1))
    ours_or_right(lambda: read_idx(path))


def test_idx_sizes_that_overflow(tmp_path):
    path = tmp_path / "x"
    for axes, packed in ((3, False), (8, False), (255, False), (4, True)):
        content = b"\0\0\x08" + bytes([axes]) + struct.pack(f">{axes}I", *[2**32 - 1] * axes)
        path.write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(BadFileError, match="not a whole IDX file"):
            read_idx(path)


def test_a_packed_idx_unpacks_no_more_than_its_header_asks_for(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 50) + bytes(1 << 24)))
    assert read_idx(path).shape == (50,)


@settings(quick, max_examples=200)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_hostile_tables(tmp_path, content):
    path = tmp_path / "t.csv"
    for prefix in (b"", b"path,label\n", b'path,label\n"'):
        path.write_bytes(prefix + content)
        ours_or_right(lambda: read_table(path))


@settings(quick, max_examples=200)
@given(
    line=st.one_of(
        st.text(max_size=40),
        st.builds(
            "{} = {}".format,
            st.sampled_from(["epochs", "data", "model", "model_options", "augment", "seed", "time_budget", "x.y"]),
            st.one_of(
                NUMBERS.map(str),
                st.text("0123456789smhe.", max_size=60).map(lambda text: f'"{text}"'),
                st.sampled_from(["[" * 50 + "]" * 50, "{a=1}", "nan", "1979-05-27", "'''", "9" * 5000]),
            ),
        ),
    )
)
def test_hostile_recipe(tmp_path, line):
    path = tmp_path / "recipe.toml"
    path.write_text(line, encoding="utf-8", errors="replace")
    ours_or_right(lambda: read_recipe(path))


def test_a_cell_without_end(tmp_path):
    path: Path = tmp_path / "t.csv"
    path.write_text('path,label\n"' + "a" * 200_000)
    with pytest.raises(BadFileError, match="not a table"):
        read_table(path)
