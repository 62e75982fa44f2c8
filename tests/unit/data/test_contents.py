"""What a file holds for a trained model: rows, records, pixels, named pictures, or the one input itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from convlens import data
from convlens.data.contents import inputs_in
from convlens.data.preprocessing import Preprocessing
from convlens.errors import BadFileError

SIGNAL = Preprocessing(kind="signal", channels=1, size=(6,), dtype="float32")
DNA = Preprocessing(kind="sequence", channels=4, size=(8,), fit="pad", alphabet="ACGT")
SPECTRUM = Preprocessing(kind="spectral", channels=5, size=(3, 3), dtype="float32")
PICTURE = Preprocessing(kind="image", channels=1, size=(4, 4))


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ucr.tsv", "1\t1\t2\t3\t4\t5\t6\n2\t6\t5\t4\t3\t2\t1\n"),
        ("bare.tsv", "1\t2\t3\t4\t5\t6\n6\t5\t4\t3\t2\t1\n"),
        ("named.csv", "a,b,c,d,e,f,label\n1,2,3,4,5,6,up\n6,5,4,3,2,1,down\n"),
        ("words.csv", "up,1,2,3,4,5,6\ndown,6,5,4,3,2,1\n"),
    ],
)
def test_rows_of_a_table_with_or_without_classes(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path, name, text)
    found = [(name, SIGNAL.decode(raw).tolist()) for name, raw in inputs_in(SIGNAL, path)]
    assert found == [(f"{path}[0]", [[1, 2, 3, 4, 5, 6]]), (f"{path}[1]", [[6, 5, 4, 3, 2, 1]])]


def test_rows_are_those_that_training_reads(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 6)).round(3)
    lines = ["\t".join([str(n % 2), *map(str, row)]) for n, row in enumerate(rows)]
    path = written(tmp_path, "set.tsv", "\n".join(lines))
    dataset = data.open(path)
    read = np.stack([SIGNAL.decode(raw) for _, raw in inputs_in(SIGNAL, path)])
    assert (read == dataset.inputs).all()


def test_a_file_of_one_signal_is_one_input(tmp_path: Path) -> None:
    path = written(tmp_path, "one.csv", "1\n2\n3\n4\n5\n6\n")
    ((name, raw),) = inputs_in(SIGNAL, path)
    assert name == str(path) and SIGNAL.decode(raw).tolist() == [[1, 2, 3, 4, 5, 6]]
    np.save(tmp_path / "many.npy", np.ones((3, 1, 6), np.float32))
    assert len(list(inputs_in(SIGNAL, tmp_path / "many.npy"))) == 3


def test_a_word_in_a_table_of_signals_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "bad.tsv", "1\t2\t3\t4\t5\t6\n6\t5\tmany\t3\t2\t1\n")
    with pytest.raises(BadFileError, match="row 1"):
        list(inputs_in(SIGNAL, path))


def test_records_and_rows_of_sequences(tmp_path: Path) -> None:
    fasta = written(tmp_path, "two.fa", ">first x\nACGT\nACGT\n>second\nTTTTTTTT\n")
    table = written(tmp_path, "two.data", "+,one,\t\tacgtacgt\n-,two,\t\ttttttttt\n")
    one = written(tmp_path, "one.fa", ">only\nACGTACGT\n")
    letters = DNA.decode("ACGTACGT")
    for path, names in ((fasta, ["first", "second"]), (table, ["0", "1"])):
        found = list(inputs_in(DNA, path))
        assert [name for name, _ in found] == [f"{path}[{name}]" for name in names]
        assert (DNA.decode(found[0][1]) == letters).all() and not (DNA.decode(found[1][1]) == letters).all()
    assert [name for name, _ in inputs_in(DNA, one)] == [str(one)]


def test_every_pixel_of_a_scene(tmp_path: Path) -> None:
    cube = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    savemat(tmp_path / "scene.mat", {"cube": cube})
    np.save(tmp_path / "scene.npy", cube)
    for name in ("scene.mat", "scene.npy"):
        found = dict(inputs_in(SPECTRUM, tmp_path / name))
        assert len(found) == 24
        patch = SPECTRUM.decode(found[f"{tmp_path / name}[2,3]"])
        assert (patch == cube[1:4, 2:5].transpose(2, 0, 1)).all()
    np.save(tmp_path / "patch.npy", cube[:3, :3])
    assert len(list(inputs_in(SPECTRUM, tmp_path / "patch.npy"))) == 1
    savemat(tmp_path / "other.mat", {"cube": cube[:, :, :3]})
    with pytest.raises(BadFileError, match="expected 5 bands, received 3"):
        list(inputs_in(SPECTRUM, tmp_path / "other.mat"))


def test_pictures_that_a_table_names(tmp_path: Path) -> None:
    path = written(tmp_path, "list.csv", "path,label\na.png,x\nsub/b.png,y\n")
    assert [raw for _, raw in inputs_in(PICTURE, path)] == [tmp_path / "a.png", tmp_path / "sub/b.png"]
    with pytest.raises(BadFileError, match="names pictures"):
        list(inputs_in(PICTURE, written(tmp_path, "numbers.csv", "1,2\n3,4\n")))
    assert [raw for _, raw in inputs_in(PICTURE, tmp_path / "photo.jpg")] == [tmp_path / "photo.jpg"]


def test_the_only_file_of_a_folder_stands_for_it(tmp_path: Path) -> None:
    written(tmp_path, "README.md", "about")
    written(
        tmp_path,
        "promoters.data",
        "".join(f"{'+-'[n % 2]},S{n},\tacgtacg{'acgt'[n % 4]}{'acgt'[n // 4]}\n" for n in range(16)),
    )
    assert len(data.open(tmp_path)) == 16
    assert data.open(tmp_path).fingerprint == data.open(tmp_path / "promoters.data").fingerprint
