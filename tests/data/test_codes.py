from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flashar_cli.data.codes import CodeSet, choose_rows, split_validation
from flashar_cli.data.shards import read_shards, write_shards
from flashar_cli.data.sources import ImageFolder, center_crop, open_pictures
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid


def make_set(count: int = 30) -> CodeSet:
    rng = np.random.default_rng(0)
    ids = np.array([f"{k:04d}" for k in range(count)])
    return CodeSet(rng.integers(0, 32, (count, 2, 3)).astype(np.int32), ids, np.arange(count, dtype=np.int64) % 5)


def test_subset_is_balanced_and_does_not_depend_on_file_order():
    data = make_set()
    rows = choose_rows(data.ids, data.labels, 12, seed=0)
    counts = np.bincount(data.labels[rows], minlength=5)
    assert len(rows) == 12 and counts.max() - counts.min() <= 1
    shuffle = np.random.default_rng(1).permutation(30)
    again = choose_rows(data.ids[shuffle], data.labels[shuffle], 12, seed=0)
    assert data.ids[rows].tolist() == data.ids[shuffle][again].tolist()
    assert data.ids[rows].tolist() != data.ids[choose_rows(data.ids, data.labels, 12, seed=1)].tolist()
    assert sorted(choose_rows(data.ids, data.labels, None, 0)) == list(range(30))
    with pytest.raises(FlasharError, match="--subset is 0"):
        choose_rows(data.ids, data.labels, 0, 0)


def test_fingerprint_sees_content_not_order():
    data = make_set()
    assert data.fingerprint() == data.take(np.arange(29, -1, -1)).fingerprint()
    assert data.fingerprint() != data.take(slice(0, 29)).fingerprint()


def test_validation_never_takes_everything():
    train, validation = split_validation(make_set(10), 500)
    assert (len(train), len(validation)) == (5, 5)
    with pytest.raises(FlasharError, match="too few"):
        split_validation(make_set(1), 1)


def test_shards_round_trip(tmp_path):
    data, grid = make_set(), Grid(2, 3)
    write_shards(tmp_path, data, grid, "hash", shard_size=12)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    back = read_shards(tmp_path, grid, 32, "hash")
    assert np.array_equal(back.codes, data.codes) and np.array_equal(back.labels, data.labels)
    assert back.fingerprint() == data.fingerprint()
    for wrong in ((Grid(3, 2), 32, "hash"), (grid, 16, "hash"), (grid, 32, "other")):
        with pytest.raises(FlasharError):
            read_shards(tmp_path, *wrong)
    (tmp_path / "codes-00001.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(FlasharError, match="cannot be read"):
        read_shards(tmp_path, grid, 32, "hash")


def test_image_folder(tmp_path):
    for name, count in (("zebra", 2), ("ant", 1)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("L", (20, 10), 200).save(tmp_path / name / f"{index}.png")
    folder = ImageFolder(tmp_path, 2, None)
    assert folder.ids.tolist() == ["ant/0.png", "zebra/0.png", "zebra/1.png"] and folder.labels.tolist() == [0, 1, 1]
    assert ImageFolder(tmp_path, 3, ("zebra", "ant", "cat")).labels.tolist() == [1, 0, 0]
    for num_classes, names in ((3, None), (3, ("zebra", "cat", "dog")), (1, None)):
        with pytest.raises(FlasharError, match="2 class folders"):
            ImageFolder(tmp_path, num_classes, names)
    assert folder.picture(0).mode == "RGB"
    (tmp_path / "ant" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(FlasharError, match=r"0\.png cannot be read"):
        folder.picture(0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlasharError, match="holds no pictures"):
        open_pictures(str(tmp_path / "empty"), 2, None)
    Image.new("L", (20, 10), 200).save(tmp_path / "stray.png")
    with pytest.raises(FlasharError, match="beside its class folders"):
        ImageFolder(tmp_path, 2, None)


def test_folders_named_by_class_number(tmp_path):
    for name in ("7", "12"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    assert ImageFolder(tmp_path, 20, None).labels.tolist() == [12, 7]
    with pytest.raises(FlasharError, match="class number"):
        ImageFolder(tmp_path, 10, None)


@pytest.mark.parametrize("data", ("shapes:many", "./nowhere", "/no/such/folder"))
def test_unknown_sources(data):
    with pytest.raises(FlasharError, match="--data"):
        open_pictures(data, 10, None)


@pytest.mark.parametrize("size", ((64, 64), (100, 300), (301, 97), (40, 40), (64, 65)))
def test_center_crop_keeps_the_middle(size):
    picture = Image.new("RGB", size, (255, 0, 0))
    middle = Image.new("RGB", (4, 4), (0, 0, 255))
    picture.paste(middle, (size[0] // 2 - 2, size[1] // 2 - 2))
    cropped = center_crop(picture, 64, 64)
    assert cropped.shape == (64, 64, 3)
    assert cropped[30:34, 30:34, 2].mean() > 60
    assert cropped[:8, :, 2].mean() < 5


def test_a_datasets_id(monkeypatch):
    import datasets

    pictures = [Image.new("RGB", (12, 12), (index, 0, 0)) for index in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [3, 1, 0, 1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    source = open_pictures("someone/pictures", 4, None)
    assert source.labels.tolist() == [3, 1, 0, 1]
    assert source.picture(2).getpixel((0, 0)) == (2, 0, 0)

    def unreachable(name, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FlasharError, match="nor a data set that can be loaded"):
        open_pictures("someone/pictures", 4, None)
