"""Tables of predictions: the same rows however often it was continued and however many processes wrote them."""

from __future__ import annotations

import csv
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from convlens import models
from convlens.cli._app import run_command_line
from convlens.data import Preprocessing
from convlens.errors import ArgumentError, DataError
from convlens.modelfile import Predictor, bulk, load
from convlens.modelfile.bulk import predict_into
from convlens.modelfile.card import ModelCard, write_model


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(bulk, "_PART", 4)
    monkeypatch.setattr(bulk, "_AT_ONCE", 3)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    architecture = {"name": "lenet5", "in_channels": 1, "num_classes": 3, "input_size": [16, 16]}
    card = ModelCard(
        architecture=architecture,
        preprocessing=Preprocessing(kind="image", channels=1, size=(16, 16), scale=1 / 255),
        class_names=("a", "b", "c"),
    )
    write_model(tmp_path / "m.safetensors", models.create(**architecture).state_dict(), card)
    return load(tmp_path / "m.safetensors")


def png(number):
    written = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def sources(tmp_path):
    """Eleven loose files, one of them bad, between two shards with a bad picture and a text."""
    folder = tmp_path / "in"
    folder.mkdir()
    loose = []
    for number in range(11):
        loose.append(folder / f"{number:02}.png")
        loose[-1].write_bytes(b"no picture" if number == 5 else png(number))
    shards = []
    for shard in range(2):
        shards.append(folder / f"shard-{shard}.tar")
        with tarfile.open(shards[-1], "w") as tar:
            for number in range(6):
                for name, content in (
                    (f"{number}.png", png(100 * shard + number) if number != 3 else b"bad"),
                    (f"{number}.txt", b"label"),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return [str(path) for path in (shards[0], *loose, shards[1])]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_rows_are_predicts_answers_and_bad_files_apart(model, sources, tmp_path):
    done = predict_into(model, sources, tmp_path / "out.csv", top=2)
    header, *rows = rows_of(tmp_path / "out.csv")
    assert header == ["path", "label", "probability", "label_2", "probability_2"]
    assert (done.finished, done.rows, done.bad, len(rows)) == (True, 20, 3, 20)
    assert [row[0] for row in rows[:2]] == [f"{sources[0]}/0.png", f"{sources[0]}/1.png"]
    assert [row[0] for row in rows[5:15]] == [path for path in sources[1:12] if not path.endswith("05.png")]
    expected = model.predict([png(number) for number in range(11) if number != 5])
    assert [row[1] for row in rows[5:15]] == expected.labels
    np.testing.assert_allclose([float(row[2]) for row in rows[5:15]], expected.probabilities.max(1), atol=1e-6)
    bad = rows_of(done.bad_files)
    assert bad[0] == ["path", "reason"]
    assert [row[0] for row in bad[1:]] == [f"{sources[0]}/3.png", sources[6], f"{sources[12]}/3.png"]
    assert "is not a picture" in bad[2][1]
    assert not (tmp_path / "out.csv.parts").exists()


def test_a_killed_run_continues_to_the_same_bytes(model, sources, tmp_path, monkeypatch):
    predict_into(model, sources, tmp_path / "whole.csv")
    whole = (tmp_path / "whole.csv").read_bytes()
    decode = Preprocessing.decode
    for after in range(1, 20, 4):
        calls = 0

        def dying(self, raw, after=after):
            nonlocal calls
            calls += 1
            if calls > after:
                raise KeyboardInterrupt
            return decode(self, raw)

        monkeypatch.setattr(Preprocessing, "decode", dying)
        with pytest.raises(KeyboardInterrupt):
            predict_into(model, sources, tmp_path / "out.csv")
        assert not (tmp_path / "out.csv").exists()
        if after % 3 == 0:
            continue  # killed again before it is continued
        monkeypatch.setattr(Preprocessing, "decode", decode)
        predict_into(model, sources, tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_bytes() == whole
        (tmp_path / "out.csv").unlink()


def test_parts_that_are_there_are_not_computed_again(model, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk._Job, "join", lambda self, units: bulk.BulkResult(self.out, False))
    predict_into(model, sources, tmp_path / "out.csv")
    monkeypatch.undo()
    monkeypatch.setattr(Preprocessing, "decode", lambda self, raw: pytest.fail("decoded again"))
    monkeypatch.setattr(bulk, "_PART", 4)
    assert predict_into(model, sources, tmp_path / "out.csv").parts_found == 7


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_several_processes_make_the_same_table(model, sources, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    whole, shared = tmp_path / f"whole.{ending}", tmp_path / f"shared.{ending}"
    predict_into(model, sources, whole)
    results = [predict_into(model, sources, shared, share=(number, 3)) for number in (2, 0, 1)]
    assert [result.finished for result in results] == [False, False, True]
    assert shared.read_bytes() == whole.read_bytes()
    assert (tmp_path / "shared-bad.csv").read_bytes() == (tmp_path / "whole-bad.csv").read_bytes()
    # more processes than there is work
    assert not predict_into(model, sources[:1], tmp_path / f"one.{ending}", share=(1, 2)).finished
    assert not (tmp_path / f"one.{ending}.parts").exists()


def test_parquet_has_types(model, sources, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict_into(model, sources, tmp_path / "out.parquet", top=2)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 20
    assert [str(field.type) for field in table.schema] == ["string", "string", "float", "string", "float"]


def test_another_job_in_the_same_place_is_refused(model, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk._Job, "join", lambda self, units: bulk.BulkResult(self.out, False))
    predict_into(model, sources, tmp_path / "out.csv")
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"other settings \(inputs, .*Remove that folder"):
        predict_into(model, sources[:3], tmp_path / "out.csv")
    with pytest.raises(ArgumentError, match=r"ends in \.csv or \.parquet"):
        predict_into(model, sources, tmp_path / "out.txt")


@pytest.mark.parametrize("kept", [2047, 2048, 2300, 2500])
def test_a_damaged_shard_gives_what_came_before_the_damage(model, sources, tmp_path, kept):
    shard = tmp_path / "torn.tar"
    with open(sources[0], "rb") as whole:
        shard.write_bytes(whole.read(kept))
    done = predict_into(model, [str(shard)], tmp_path / "out.csv")
    assert done.rows == 1
    assert "damaged from here on" in rows_of(done.bad_files)[-1][1]


def test_command(model, sources, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert run_command_line(["predict", str(model.path), str(tmp_path / "in"), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"out": str(out), "rows": 20, "bad": 3, "bad_files": str(tmp_path / "out-bad.csv")}
    assert isinstance(model, Predictor)
    assert run_command_line(["predict", str(model.path), "-", "--out", str(out)]) == 2
    inside = tmp_path / "in" / "out.csv"
    for _ in range(2):  # what it has made is no input the second time
        assert run_command_line(["predict", str(model.path), str(tmp_path / "in"), "--out", str(inside)]) == 0
    assert inside.read_bytes() == out.read_bytes()
