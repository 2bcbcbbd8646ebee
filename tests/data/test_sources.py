"""Every source lists the same images and returns the chosen ones, in order."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from flashar_cli.config.recipe import DATA_DEFAULTS, DataSettings
from flashar_cli.data.captioned_shapes import describe, draw_captioned
from flashar_cli.data.decode import BadImage, decode
from flashar_cli.data.shapes import TRAINING_SEED, draw
from flashar_cli.data.sources.base import Wanted
from flashar_cli.data.sources.folder import ImageFolder
from flashar_cli.data.sources.open import open_images
from flashar_cli.errors import FlasharError
from tests.data.images import encoded

CLASSES = Wanted(4, ("ant", "bee", "cat", "dog"))
CAPTIONS = Wanted(None)
LABELS = [3, 1, 0, 1, 2, 2]


def image(index: int) -> Image.Image:
    return Image.new("RGB", (12, 12), (index, 0, 0))


def content(index: int) -> bytes:
    return encoded(image(index))


def tar_file(path, samples, folder=""):
    with tarfile.open(path, "w") as archive:
        for name, data in samples:
            member = tarfile.TarInfo(folder + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def make_source(kind, folder, wanted):
    text = [f"caption {index}" if wanted.captions else label for index, label in enumerate(LABELS)]
    name = "caption" if wanted.captions else "label"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        for part, rows in enumerate((range(4), range(4, 6))):
            images = [{"bytes": content(row), "path": None} for row in rows]
            table = pa.table({"image": images, name: [text[row] for row in rows]})
            pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=3)
    elif kind == "hub":
        import datasets

        shown = datasets.Value("string") if wanted.captions else datasets.ClassLabel(num_classes=4)
        features = datasets.Features({"image": datasets.Image(), name: shown})
        rows = datasets.Dataset.from_dict({"image": [image(i) for i in range(6)], name: text}, features=features)
        return rows
    elif kind == "tar":
        samples = []
        for index, value in enumerate(text):
            beside = (f"{index}.txt" if wanted.captions else f"{index}.cls", str(value).encode())
            if index == 4:
                beside = (f"{index}.json", json.dumps({name: value}).encode())
            samples.append([(f"{index}.PNG", content(index)), beside])
        tar_file(folder / "a.tar", [*chain(*samples[:4])], "train/")
        tar_file(folder / "b.tar", [*chain(*samples[4:])])
    else:
        lines = []
        (folder / "pics").mkdir()
        for index, value in enumerate(text):
            (folder / "pics" / f"{index}.png").write_bytes(content(index))
            lines.append(json.dumps({"image": f"pics/{index}.png", name: value}))
        (folder / "list.jsonl").write_text("\n".join(lines) + "\n\n")
        return folder / "list.jsonl"
    return folder


@pytest.mark.parametrize("kind", ("parquet", "hub", "tar", "jsonl"))
@pytest.mark.parametrize("wanted", (CLASSES, CAPTIONS), ids=("classes", "captions"))
def test_a_source(kind, wanted, tmp_path, monkeypatch):
    made = make_source(kind, tmp_path, wanted)
    name = str(made)
    if kind == "hub":
        import datasets

        name = "someone/images"

        def load_dataset(name, split, streaming, columns=None):
            assert streaming and split == "train"
            return (made if columns is None else made.select_columns(columns)).to_iterable_dataset()

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_images(name, wanted)
    assert len(set(source.ids.tolist())) == 6 and len(source.fingerprint) == 64
    if wanted.captions:
        assert source.labels is None and list(source.captions) == [f"caption {index}" for index in range(6)]
    else:
        assert source.captions is None and source.labels.tolist() == LABELS
    for rows in ([0, 1, 2, 3, 4, 5], [1, 4], [5], []):
        fetched = [decode(fetch()).getpixel((0, 0))[0] for fetch in source.images(np.array(rows, np.int64))]
        assert fetched == rows
    assert open_images(name, wanted).fingerprint == source.fingerprint
    missing = "caption" if not wanted.captions else "label"
    with pytest.raises(FlasharError, match=missing):
        open_images(name, CAPTIONS if not wanted.captions else CLASSES)


def test_a_data_set_on_disk_streams_like_one_of_the_hub(tmp_path):
    from flashar_cli.data.sources.hub import HubDataset

    rows = make_source("hub", tmp_path, CLASSES)
    rows.to_parquet(tmp_path / "data.parquet")
    source = HubDataset(str(tmp_path), DATA_DEFAULTS, CLASSES)
    assert source.labels.tolist() == LABELS
    assert [decode(fetch()).getpixel((0, 0))[0] for fetch in source.images(np.array([2, 5]))] == [2, 5]


@pytest.fixture(autouse=True)
def no_question_to_the_network(monkeypatch):
    monkeypatch.setattr("flashar_cli.data.sources.hub.hub_unreachable", lambda: False)


def test_without_a_network_nothing_is_tried(monkeypatch):
    import datasets

    monkeypatch.setattr("flashar_cli.data.sources.hub.hub_unreachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the Hub was asked"))
    with pytest.raises(FlasharError, match=r"someone/images is neither.*can't be reached"):
        open_images("someone/images", CLASSES)


def test_an_unreachable_data_set(monkeypatch):
    import datasets

    def unreachable(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FlasharError, match="nor a data set that can be loaded"):
        open_images("someone/images", CLASSES)


def test_a_stream_that_breaks_off_is_one_line(tmp_path, monkeypatch):
    from flashar_cli.data.sources.hub import HubDataset

    make_source("hub", tmp_path, CLASSES).to_parquet(tmp_path / "data.parquet")
    source = HubDataset(str(tmp_path), DATA_DEFAULTS, CLASSES)
    (tmp_path / "data.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(FlasharError, match="broke off|nor a data set"):
        list(source.images(np.arange(6)))


def test_columns_splits_and_names_of_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, label in (("train", "dog"), ("test", "ant")):
        pq.write_table(pa.table({"jpg": [content(1)], "what": [label]}), tmp_path / f"{split}-0.parquet")
    columns = DataSettings(split="test", image_column="jpg", label_column="what")
    assert open_images(str(tmp_path), CLASSES, columns).labels.tolist() == [0]
    assert len(open_images(str(tmp_path), CLASSES, DataSettings(image_column="jpg", label_column="what")).ids) == 2
    for wrong, words in (
        (DataSettings(split="valid", image_column="jpg", label_column="what"), "--split valid"),
        (DataSettings(image_column="png", label_column="what"), "--image-column"),
        (DataSettings(image_column="jpg", label_column="label"), "--label-column"),
    ):
        with pytest.raises(FlasharError, match=words):
            open_images(str(tmp_path), CLASSES, wrong)
    with pytest.raises(FlasharError, match="label 'dog', which is no class"):
        open_images(str(tmp_path), Wanted(4), DataSettings(split="train", image_column="jpg", label_column="what"))
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FlasharError, match="cannot be read as Parquet"):
        open_images(str(tmp_path), CLASSES, DataSettings(image_column="jpg", label_column="what"))


def test_broken_tars_and_manifests(tmp_path):
    tar_file(tmp_path / "a.tar", [("x.png", content(0)), ("x.cls", b"1"), ("y.png", content(0))])
    with pytest.raises(FlasharError, match=r"sample y of .*a.tar has neither .cls nor .json"):
        open_images(str(tmp_path), CLASSES)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(FlasharError, match="uncompressed tar"):
        open_images(str(tmp_path / "a.tar"), CLASSES)
    lines = tmp_path / "list.jsonl"
    for text, words in (
        ('{"image": "a.png"}', "line 1"),
        ("{", "line 1"),
        ("", "is empty"),
        ('{"image": "a", "label": 1}\n{"image": "a", "label": 2}', "two images 'a'"),
        ('{"image": "a", "label": 1.5}', "not whole numbers"),
    ):
        lines.write_text(text)
        with pytest.raises(FlasharError, match=words):
            open_images(str(lines), CLASSES)


def test_named_parts_of_tars_and_options_without_use(tmp_path):
    samples = [("x.jpg", b""), ("x.png", content(3)), ("x.cls", b"1"), ("x.fine", b"2"), ("x.json", b'{"kind": "dog"}')]
    tar_file(tmp_path / "a.tar", samples)
    source = open_images(str(tmp_path), CLASSES, DataSettings(image_column="png", label_column="fine"))
    assert source.labels.tolist() == [2]
    assert decode(next(source.images(np.array([0])))()).getpixel((0, 0)) == (3, 0, 0)
    assert open_images(str(tmp_path), CLASSES, DataSettings(label_column="kind")).labels.tolist() == [3]
    assert open_images(str(tmp_path), CLASSES).labels.tolist() == [1]
    for data, columns, words in (
        (str(tmp_path), DataSettings(split="train"), "no use for --split"),
        ("shapes:3", DataSettings(label_column="kind"), "no use for --label-column"),
    ):
        with pytest.raises(FlasharError, match=words):
            open_images(data, CLASSES, columns)


def test_a_file_that_is_missing_is_a_bad_image_not_an_end(tmp_path):
    for name, words in (("gone.png", "its file does not exist"), ("9" * 1000, "its file cannot be read")):
        (tmp_path / "list.jsonl").write_text(json.dumps({"image": name, "label": 1}))
        fetch = next(iter(open_images(str(tmp_path / "list.jsonl"), CLASSES).images(np.array([0]))))
        with pytest.raises(FlasharError, match=words):
            fetch()


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
    (tmp_path / "ant" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadImage):
        decode(next(iter(folder.images(np.array([0]))))())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlasharError, match="holds no images"):
        open_images(str(tmp_path / "empty"), Wanted(2))
    with pytest.raises(FlasharError, match=r"0.png has no caption"):
        open_images(str(tmp_path), CAPTIONS)
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


@pytest.mark.parametrize("data", ("shapes:many", "./nowhere", "/no/such/folder", "gone.parquet", "shapes:0"))
def test_unknown_sources(data):
    with pytest.raises(FlasharError, match="--data"):
        open_images(data, Wanted(10))


def test_shapes_have_classes_or_captions():
    by_class, by_caption = open_images("shapes:3", Wanted(10)), open_images("shapes:3", CAPTIONS)
    assert by_class.labels.tolist() == [0, 1, 2] and by_class.captions is None
    assert by_caption.labels is None and by_caption.captions == [describe(TRAINING_SEED, k)[1] for k in range(3)]
    assert not set(by_class.ids.tolist()) & set(by_caption.ids.tolist())
    assert by_class.fingerprint != by_caption.fingerprint
    for source, drawn in ((by_class, draw), (by_caption, draw_captioned)):
        images = [np.asarray(decode(fetch())) for fetch in source.images(np.array([0, 2]))]
        assert np.array_equal(images, [drawn(TRAINING_SEED, 0), drawn(TRAINING_SEED, 2)])


def test_a_folder_with_captions_beside_the_images(tmp_path):
    (tmp_path / "more").mkdir()
    for name, index in (("b.PNG", 1), ("a.x.png", 0), ("more/c.png", 2)):
        (tmp_path / name).write_bytes(content(index))
        (tmp_path / name).with_suffix(".txt").write_text(f"caption {index}\n")
    (tmp_path / "stray.txt").write_text("of no image")
    source = open_images(str(tmp_path), CAPTIONS)
    assert source.ids.tolist() == ["a.x.png", "b.PNG", "more/c.png"] and source.labels is None
    assert source.captions == ["caption 0", "caption 1", "caption 2"]
    assert [decode(fetch()).getpixel((0, 0))[0] for fetch in source.images(np.array([0, 2]))] == [0, 2]
    (tmp_path / "b.txt").write_text("another")
    assert open_images(str(tmp_path), CAPTIONS).fingerprint != source.fingerprint
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(FlasharError, match=r"b.txt is not UTF-8"):
        open_images(str(tmp_path), CAPTIONS)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(FlasharError, match=r"b.PNG has no caption, .*expected it in b.txt"):
        open_images(str(tmp_path), CAPTIONS)


@pytest.mark.parametrize("name", ("text", "prompt"))
def test_captions_by_other_names(tmp_path, name):
    (tmp_path / "list.jsonl").write_text(
        json.dumps({"image": "a.png", name: "one"})
        + "\n"
        + json.dumps({"image": "b.png", "caption": "two", name: "no"})
    )
    assert open_images(str(tmp_path / "list.jsonl"), CAPTIONS).captions == ["one", "two"]
    tar_file(tmp_path / "a.tar", [("x.png", content(0)), ("x.json", json.dumps({name: "one"}).encode())])
    assert open_images(str(tmp_path / "a.tar"), CAPTIONS).captions == ["one"]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [content(0)], name: ["one"]}), tmp_path / "a.parquet")
    assert open_images(str(tmp_path / "a.parquet"), CAPTIONS).captions == ["one"]
    for path in ("list.jsonl", "a.tar", "a.parquet"):  # a column that was asked for is the only one
        with pytest.raises(FlasharError, match="words"):
            open_images(str(tmp_path / path), CAPTIONS, DataSettings(caption_column="words"))


@pytest.mark.parametrize("image", ("../a.png", "/etc/hostname", "pics/../../a.png", "pics/../../data-2/a.png"))
def test_a_manifest_names_no_file_outside_its_folder(tmp_path, image):
    (tmp_path / "data").mkdir()
    lines = tmp_path / "data" / "list.jsonl"
    lines.write_text(json.dumps({"image": image, "caption": "a"}))
    with pytest.raises(FlasharError, match=r"line 1 of .*list.jsonl names the image .*, outside the folder"):
        open_images(str(lines), CAPTIONS)
    lines.write_text(json.dumps({"image": str(tmp_path / "data" / "a.png"), "caption": "a"}))
    assert len(open_images(str(lines), CAPTIONS).ids) == 1


def test_tars_of_token_grids(tmp_path):
    def grids(value):
        return [(f"{k}.{end}", body) for k in range(2) for end, body in (("pt", bytes([k, value])), ("txt", b"words"))]

    tar_file(tmp_path / "a.tar", grids(1))
    source = open_images(str(tmp_path), CAPTIONS)
    assert source.holds_tokens and source.ids.tolist() == ["a.tar/0", "a.tar/1"] and source.captions == ["words"] * 2
    assert [fetch() for fetch in source.images(np.array([1]))] == [b"\1\1"]
    tar_file(tmp_path / "a.tar", grids(2))  # other tokens in files of the same size
    assert open_images(str(tmp_path), CAPTIONS).fingerprint != source.fingerprint
    tar_file(tmp_path / "b.tar", [("x.png", content(0)), ("x.txt", b"words")])
    with pytest.raises(FlasharError, match="samples with images and others with .pt tokens"):
        open_images(str(tmp_path), CAPTIONS)
    tar_file(tmp_path / "b.tar", [(f"x.{name}", b"") for name in ("0.pt", "0.txt", "1.pt", "1.txt")])
    with pytest.raises(FlasharError, match=r"b.tar has two .pt members named 'x' before their first dot"):
        open_images(str(tmp_path), CAPTIONS)
    tar_file(tmp_path / "b.tar", [("x.pt", b"")])
    with pytest.raises(FlasharError, match=r"sample x of .*b.tar has neither .txt nor .json beside it; .*caption"):
        open_images(str(tmp_path), CAPTIONS)


@pytest.mark.parametrize("label", (10**30, -(10**30), f'"{"9" * 4000}"', "1e30", '"\\u0661"'))
def test_labels_that_no_array_holds(tmp_path, label):
    lines = tmp_path / "list.jsonl"
    lines.write_text(f'{{"image": "a.png", "label": {label}}}')
    with pytest.raises(FlasharError, match="label|digits") as error:
        open_images(str(lines), CLASSES)
    assert len(str(error.value)) < 500


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "caf\udce9.png").write_bytes(content(0))
    with pytest.raises(FlasharError, match=r"caf\\udce9.png.*expected printable Unicode"):
        open_images(str(tmp_path), CLASSES)
    (tmp_path / "list.jsonl").write_text('{"image": "\\ud800.png", "label": 1}')
    with pytest.raises(FlasharError, match="is not UTF-8|list.jsonl"):
        open_images(str(tmp_path / "list.jsonl"), CLASSES)


@pytest.mark.parametrize("count", ("9" * 200, "0", "-1", "1e3", "99999999999"))
def test_shapes_that_nobody_draws(count):
    with pytest.raises(FlasharError, match="shapes|more than 18 digits") as error:
        open_images(f"shapes:{count}", CLASSES)
    assert "GiB" not in str(error.value)
