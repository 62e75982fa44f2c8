"""Signals, sequences, volumes, scenes, arrays and manifests."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from convlens import data
from convlens.errors import BadFileError, DataError

from .conftest import PictureFolder

DRAW = np.random.default_rng(11)


def write_ucr(path: Path, rows: int, length: int = 12, *, gap: bool = False) -> None:
    values = DRAW.normal(size=(rows, length))
    if gap:
        values[0, 3:5] = np.nan
    lines = [
        "\t".join([str(n % 3), *(f"{v:.5f}" if v == v else "NaN" for v in row)]) for n, row in enumerate(values)
    ]
    path.write_text("\n".join(lines) + "\n")


def test_ucr_folder(tmp_path: Path) -> None:
    write_ucr(tmp_path / "Toy_TRAIN.tsv", 30)
    write_ucr(tmp_path / "Toy_TEST.tsv", 15)
    (tmp_path / "README.md").write_text("about")
    dataset = data.open(tmp_path)
    assert dataset.kind == "signal"
    assert dataset.inputs.shape == (45, 1, 12)
    assert dataset.inputs.dtype == np.float32
    assert len(dataset.splits["test"]) == 15
    assert {dataset.names[n].split("[")[0] for n in dataset.splits["test"]} == {"Toy_TEST.tsv"}
    assert len(data.open(tmp_path / "Toy_TRAIN.tsv")) == 45


def test_gaps_are_bridged_and_told(tmp_path: Path) -> None:
    write_ucr(tmp_path / "a.tsv", 30, gap=True)
    dataset = data.open(tmp_path / "a.tsv")
    assert np.isfinite(dataset.inputs).all()
    row = dataset.inputs[0, 0]
    np.testing.assert_allclose(
        row[3:5], [row[2] + (row[5] - row[2]) / 3, row[2] + (row[5] - row[2]) * 2 / 3], rtol=1e-5
    )
    assert "1 signals have gaps" in dataset.report.notes[0]


def test_csv_with_header_label_split_and_group(tmp_path: Path) -> None:
    lines = ["a,b,c,d,e,label,split,group"]
    for number in range(24):
        part = "test" if number >= 18 else "train"
        lines.append(
            ",".join([*(f"{v:.3f}" for v in DRAW.normal(size=5)), "xy"[number % 2], part, f"p{number // 3}"])
        )
    (tmp_path / "t.csv").write_text("\n".join(lines))
    dataset = data.open(tmp_path / "t.csv")
    assert dataset.class_names == ("x", "y")
    assert dataset.inputs.shape == (24, 1, 5)
    assert len(dataset.splits["test"]) == 6
    assert dataset.groups is not None
    for group in range(8):
        sides = {part for part in data.SPLITS for n in dataset.splits[part] if dataset.groups[n] == group}
        assert len(sides) == 1


def test_words_among_numbers_are_named(tmp_path: Path) -> None:
    write_ucr(tmp_path / "a.tsv", 10)
    text = (tmp_path / "a.tsv").read_text().splitlines()
    text[4] = text[4].replace(text[4].split("\t")[5], "oops")
    (tmp_path / "a.tsv").write_text("\n".join(text))
    with pytest.raises(BadFileError, match="line 5 holds what is no number"):
        data.open(tmp_path / "a.tsv")


def test_uneven_rows_are_named(tmp_path: Path) -> None:
    write_ucr(tmp_path / "a.tsv", 10)
    with (tmp_path / "a.tsv").open("a") as file:
        file.write("1\t2.0\n")
    with pytest.raises(BadFileError, match="line 11 has 2 cells where 13 were expected"):
        data.open(tmp_path / "a.tsv")


def test_decoding_a_signal_by_each_fit() -> None:
    form = data.Preprocessing(kind="signal", channels=1, size=(4,), dtype="float32")
    ramp = np.arange(8.0)
    np.testing.assert_array_equal(form.decode(ramp), [[2, 3, 4, 5]])
    np.testing.assert_allclose(form.model_copy(update={"fit": "stretch"}).decode(ramp), [[0, 7 / 3, 14 / 3, 7]])
    np.testing.assert_array_equal(form.model_copy(update={"fit": "pad"}).decode(ramp[:2]), [[0, 1, 0, 0]])
    np.testing.assert_array_equal(form.decode(b"1,2,3,4\n"), [[1, 2, 3, 4]])
    with pytest.raises(BadFileError, match=r"expected a signal \[1, length\]"):
        form.decode(np.zeros((2, 4)))


def test_promoter_style_table(tmp_path: Path) -> None:
    rows = [f"{'+-'[n % 2]},S{n},\t\t{''.join(DRAW.choice(list('acgt'), 20))}" for n in range(40)]
    (tmp_path / "promoters.data").write_text("\n".join(rows) + "\n")
    dataset = data.open(tmp_path / "promoters.data")
    assert dataset.kind == "sequence"
    assert dataset.inputs.shape == (40, 4, 20)
    assert dataset.preprocessing.alphabet == "ACGT"
    assert dataset.names[3] == "S3"
    assert (dataset.inputs.sum(axis=1) == 1).all()
    letters = rows[5].split("\t")[-1]
    assert "".join("acgt"[code] for code in dataset.inputs[5].argmax(axis=0)) == letters
    np.testing.assert_array_equal(dataset.preprocessing.decode(letters), dataset.inputs[5])


def test_fasta_in_one_file_and_in_class_files(tmp_path: Path) -> None:
    records = [(f"s{n} label={'ab'[n % 2]}", "".join(DRAW.choice(list("ACGU"), 9 + n % 3))) for n in range(20)]
    one = tmp_path / "all.fasta"
    one.write_text("".join(f">{head}\n{text[:5]}\n{text[5:]}\n" for head, text in records))
    dataset = data.open(one)
    assert dataset.class_names == ("a", "b")
    assert dataset.inputs.shape == (20, 4, 11)
    assert (dataset.inputs[0].sum(axis=0) == [1] * 9 + [0] * 2).all()
    assert "lengths from 9 to 11" in dataset.report.notes[1]
    folder = tmp_path / "classes"
    folder.mkdir()
    for label in "ab":
        chosen = [f">{head.split()[0]}\n{text}\n" for head, text in records if head.endswith(label)]
        (folder / f"{label}.fa").write_text("".join(chosen))
    assert len(data.open(folder)) == 20
    one.write_text(">only\nACGTACGT\n")
    with pytest.raises(DataError, match="does not say its class"):
        data.open(one)


def test_protein_letters_give_the_protein_alphabet(tmp_path: Path) -> None:
    rows = [
        "label,sequence",
        *(f"{n % 2},{''.join(DRAW.choice(list('ACDEFGHIKLMNPQRSTVWY'), 30))}" for n in range(20)),
    ]
    (tmp_path / "p.csv").write_text("\n".join(rows))
    assert data.open(tmp_path / "p.csv").inputs.shape == (20, 20, 30)


@pytest.mark.parametrize("ending", ["npy", "nii", "nii.gz"])
def test_volume_folders(tmp_path: Path, ending: str) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            volume = DRAW.normal(size=(5, 6, 7)).astype(np.float32)
            path = tmp_path / label / f"{number}.{ending}"
            if ending == "npy":
                np.save(path, volume)
            else:
                nibabel = pytest.importorskip("nibabel")
                nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), path)
    (tmp_path / "a" / f"bad.{ending}").write_bytes(b"nothing")
    dataset = data.open(tmp_path)
    assert dataset.kind == "volume"
    assert dataset.inputs.shape == (8, 1, 5, 6, 7)
    assert [Path(item.path).name for item in dataset.report.skipped] == [f"bad.{ending}"]
    np.testing.assert_allclose(
        dataset.preprocessing.decode(tmp_path / dataset.names[7]), dataset.inputs[7], rtol=1e-6
    )
    assert data.open(tmp_path, size=4).inputs.shape == (8, 1, 4, 4, 4)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_volume_fits(fit: str) -> None:
    form = data.Preprocessing(kind="volume", channels=1, size=(4, 4, 4), dtype="float32", fit=fit)  # type: ignore[arg-type]
    out = form.decode(np.ones((4, 8, 8), np.float32))
    assert out.shape == (1, 4, 4, 4)
    assert out.mean() == pytest.approx(0.5 if fit == "pad" else 1.0)


def test_scene_of_labelled_pixels(tmp_path: Path) -> None:
    from scipy.io import savemat

    cube = DRAW.random((6, 5, 8))
    truth = DRAW.integers(0, 3, (6, 5))
    truth[0] = 0
    savemat(tmp_path / "s.mat", {"cube": cube})
    savemat(tmp_path / "s_gt.mat", {"map": truth})
    dataset = data.open(tmp_path / "s.mat")
    assert dataset.kind == "spectral"
    assert dataset.inputs.shape == (int((truth > 0).sum()), 8, 1, 1)
    assert dataset.class_names == ("1", "2")
    rows, columns = np.nonzero(truth)
    np.testing.assert_allclose(dataset.inputs[:, :, 0, 0], cube[rows, columns], rtol=1e-6)
    patches = data.open(tmp_path / "s.mat", patch=3)
    assert patches.inputs.shape[1:] == (8, 3, 3)
    np.testing.assert_allclose(patches.inputs[:, :, 1, 1], cube[rows, columns], rtol=1e-6)
    assert "overlap" in patches.report.notes[1]
    np.testing.assert_allclose(
        dataset.preprocessing.decode(cube[2, 3]), cube[2, 3][:, None, None].astype(np.float32)
    )
    np.save(tmp_path / "c.npy", cube)
    np.save(tmp_path / "c_gt.npy", truth)
    assert data.open(tmp_path / "c.npy", kind="spectral").fingerprint == dataset.fingerprint


def test_unmixing_scene_runs_down_the_columns(tmp_path: Path) -> None:
    from scipy.io import savemat

    picture = DRAW.random((4, 4, 3))
    truth = np.arange(16).reshape(4, 4) % 2
    savemat(
        tmp_path / "u.mat", {"Y": picture.transpose(2, 1, 0).reshape(3, 16), "A": np.eye(2)[:, truth.T.ravel()]}
    )
    dataset = data.open(tmp_path / "u.mat")
    np.testing.assert_array_equal(dataset.labels, truth.ravel())
    np.testing.assert_allclose(dataset.inputs[:, :, 0, 0], picture.reshape(16, 3), rtol=1e-6)


def test_npz_with_parts(tmp_path: Path) -> None:
    arrays = {}
    for part, count in (("train", 20), ("test", 8)):
        arrays[f"x_{part}"] = DRAW.integers(0, 256, (count, 6, 6), np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 2
    np.savez(tmp_path / "toy.npz", **arrays)
    dataset = data.open(tmp_path / "toy.npz")
    assert dataset.kind == "image"
    np.testing.assert_array_equal(dataset.inputs[dataset.splits["test"], 0], arrays["x_test"])


@pytest.mark.parametrize(
    ("shape", "kind", "stored"),
    [
        ((12, 30), "signal", (1, 30)),
        ((12, 3, 30), "signal", (3, 30)),
        ((12, 9, 8, 3), "image", (3, 9, 8)),
        ((12, 3, 9, 8), "image", (3, 9, 8)),
        ((12, 9, 8, 7), "volume", (1, 9, 8, 7)),
        ((12, 2, 9, 8, 7), "volume", (2, 9, 8, 7)),
    ],
)
def test_npy_kinds_by_axes(tmp_path: Path, shape: tuple[int, ...], kind: str, stored: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", DRAW.random(shape))
    np.save(tmp_path / "y.npy", np.arange(12) % 3)
    dataset = data.open(tmp_path / "x.npy")
    assert dataset.kind == kind
    assert dataset.inputs.shape[1:] == stored


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(tmp_path / "y.npy", np.arange(1))
    with pytest.raises(BadFileError, match=r"Python objects \(pickle\)"):
        data.open(tmp_path / "x.npy")


def test_npz_without_labels_names_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4)))
    with pytest.raises(DataError, match="holds the arrays x; expected inputs and labels"):
        data.open(tmp_path / "a.npz")


def write_manifest(pictures: PictureFolder, rows: list[dict[str, str]]) -> Path:
    path = pictures.root / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_manifest_with_groups_and_a_missing_file(pictures: PictureFolder) -> None:
    pictures.fill("all/", each=15)
    rows = [
        {"path": path.relative_to(pictures.root).as_posix(), "label": path.parent.name, "patient": path.stem[:2]}
        for path in sorted(pictures.root.rglob("*.png"))
    ]
    rows.append({"path": "all/none.png", "label": "cat", "patient": "9"})
    dataset = data.open(write_manifest(pictures, rows))
    assert len(dataset) == 30
    assert "no such file" in dataset.report.skipped[0].reason
    assert dataset.groups is not None


def test_manifest_multi_label(pictures: PictureFolder) -> None:
    files = [pictures.add(f"{n}.png") for n in range(30)]
    words = ["sky;sea", "sea", "", "sky|", "tree;sea"]
    rows = [{"path": path.name, "labels": words[n % 3]} for n, path in enumerate(files)]
    dataset = data.open(write_manifest(pictures, rows))
    assert dataset.multilabel
    assert dataset.class_names == ("sea", "sky")
    np.testing.assert_array_equal(dataset.labels[:3], [[1, 1], [1, 0], [0, 0]])
    assert dataset.class_counts().shape == (2,)


def test_manifest_in_parquet(pictures: PictureFolder) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = [pictures.add(f"{n}.png") for n in range(12)]
    table = pyarrow.table(
        {
            "path": [f.name for f in files],
            "label": [n % 2 for n in range(12)],
            "split": ["train"] * 8 + ["val"] * 4,
        }
    )
    parquet.write_table(table, pictures.root / "list.parquet")
    dataset = data.open(pictures.root / "list.parquet")
    assert dataset.class_names == ("0", "1")
    assert len(dataset.splits["dev"]) == 4


def test_manifest_with_an_unknown_split_word(pictures: PictureFolder) -> None:
    files = [pictures.add(f"{n}.png") for n in range(4)]
    rows = [{"path": path.name, "label": str(n % 2), "split": "holdout"} for n, path in enumerate(files)]
    with pytest.raises(DataError, match=r"expected train, dev \(val\) or test, received 'holdout'"):
        data.open(write_manifest(pictures, rows))


def test_sixteen_bit_arrays_in_an_npz_are_pictures(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", images=DRAW.integers(0, 65536, (12, 5, 5, 1), np.uint16), labels=np.arange(12) % 2
    )
    assert data.open(tmp_path / "a.npz").inputs.shape == (12, 1, 5, 5)
