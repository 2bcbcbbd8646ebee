"""`flashar adapt` and `flashar probe` on the embedded model, briefly."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.config import read_config
from flashar_cli.errors import FlasharError
from flashar_cli.training import validation
from tests.data.images import shape_folder

SMALL_RUN = (
    "--data",
    "shapes:48",
    "--batch-size",
    8,
    "--set",
    "data.num_validation=16",
    "--set",
    "stage1.warmup_steps=0",
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    from flashar_cli.adaptation import artifacts

    monkeypatch.setattr(artifacts, "SHEET_IMAGES", 10)
    monkeypatch.setattr(artifacts, "BASE_SHEET_IMAGES", 10)


@pytest.fixture
def small_base(write_tiny_checkpoint, monkeypatch):
    """A random base of 4x4 tokens, which takes a tenth of the time of the embedded one."""
    monkeypatch.setattr(validation, "MARGIN_BELOW_CHANCE", -10.0)  # or it would be refused as no better than chance
    return write_tiny_checkpoint(branch=False)


def test_adapt_writes_a_model_that_decodes(run_cli, tmp_path):
    out = tmp_path / "adapted"
    probe = {
        "model_sha256": checkpoint.weights_sha256(hub.resolve("llamagen-tiny")),
        "layers": [{"layer": m, "right_loss": 2.0, "lower_loss": 9.0 - m} for m in range(6)],
        **{"recommended_layer": 5, "num_train": 8, "mask": "raster", "head": "full"},
    }
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    arguments = ("--steps", 4, "--branch-layer", 4, "--probe", tmp_path / "probe.json", "--out", out, "--json")
    result = run_cli("adapt", "llamagen-tiny", *SMALL_RUN, *arguments)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    validation = document["validation"]
    assert document["report"] == str(out / "report.html")
    report = (out / "report.html").read_text()
    assert (
        "llamagen-tiny" in report and "Probe losses" in report and report.count("data:image/png") >= 20
    )  # ten pairs of samples
    with Image.open(out / "gate-map.png") as image:
        gates = json.loads(image.text["flashar"])["gate_mean"]
    assert len(gates) == 16 and gates[0][1] == 1 and gates[1][0] == 0
    assert validation["stage"] == "stage2" and validation["step"] == 4
    assert set(validation) >= {"raster", "fused", "horizontal", "vertical", "gate_mean", "gate_std"}
    config = read_config(out)
    assert config.branch is not None and (config.branch.layer, config.branch.gate) == (4, "hidden")
    assert config.provenance.source == "llamagen-tiny" and config.provenance.data_fingerprint
    kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("step") == 4 and kinds.count("validation") == 3  # before, between, after
    assert kinds[0] == "start" and kinds.count("start") == 1
    for stage in ("base", "stage1", "stage2"):
        with Image.open(out / f"samples-{stage}.png") as sheet:
            assert sheet.width > 600
    assert not list(tmp_path.glob("*.run"))
    assert run_cli("generate", out, "--labels", "heart", "--tokens-out", tmp_path / "t.npy").code == 0


def test_block_diffusion_writes_a_model_that_every_command_reads(run_cli, tmp_path, small_base):
    out = tmp_path / "blocks"
    command = ("adapt", small_base, *SMALL_RUN, "--method", "block-diffusion", "--steps", 4)
    plan = json.loads(run_cli(*command, "--out", out, "--dry-run").out)
    assert plan["diffusion"] == {"block": 4} and "branch" not in plan and plan["steps"] == {"stage2": 4}
    assert plan["parameters"]["added"] == 64 and plan["ways"] == []
    result = run_cli(*command, "--out", out, "--json")
    assert result.code == 0, result.err
    assert set(json.loads(result.out)["validation"]) >= {"raster", "diffusion"}
    assert "blocks of 4" in result.err and "branch" not in result.err
    report = (out / "report.html").read_text()
    assert "adapted to block diffusion" in report and "16 forwards an image instead of 16" in report
    assert "diffusion loss after" in report and "Gate" not in report and "decoder block-diffusion:4" in report
    assert not (out / "gate-map.png").exists() and read_config(out).diffusion is not None
    for number, decoder in enumerate(((), ("--decoder", "block-diffusion:2"), ("--decoder", "raster"))):
        made = run_cli("generate", out, "--num-images", 2, *decoder, "--tokens-out", tmp_path / f"{number}.npy")
        assert made.code == 0, made.err
    shown = run_cli("inspect", out).out
    assert "blocks of 4" in shown and "block-diffusion:4 16, raster 16" in shown
    bench = json.loads(run_cli("bench", out, "--repeats", 1, "--warmup", 1, "--no-pixels", "--json").out)
    arms = {arm["decoder"]: arm["forwards_per_image"] for arm in bench["batches"][0]["arms"]}
    assert arms == {"raster": 16, "block-diffusion:4": 16}
    for command, words in (
        (("adapt", out, *SMALL_RUN, "--out", tmp_path / "again"), "draws blocks by diffusion already"),
        (("convert", out, "--to", "upstream", "--out", tmp_path / "upstream"), "no name in the upstream layout"),
        (("generate", out, "--decoder", "flashar"), "no vertical branch"),
        (("bench", small_base, "--arms", "block-diffusion:4-eager"), "knows no block diffusion"),
    ):
        refused = run_cli(*command)
        assert refused.code == 2 and words in refused.err and refused.err.count("\n") == 1, refused.err


def test_an_interrupted_run_resumes_to_the_same_weights(run_cli, tmp_path, monkeypatch, small_base):
    command = ("adapt", small_base, *SMALL_RUN, "--steps", 5, "--set", "save_every=1", "--out")
    assert run_cli(*command, tmp_path / "whole").code == 0

    from flashar_cli.training import loop

    one_step, calls = loop._optimizer_step, []

    def interrupted(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return one_step(*args)

    monkeypatch.setattr(loop, "_optimizer_step", interrupted)
    result = run_cli(*command, tmp_path / "cut")
    assert result.code == 130 and f"resume with: flashar adapt {small_base}" in result.err
    assert not (tmp_path / "cut").exists()
    base_samples = (tmp_path / "cut.run" / "samples-base.png").read_bytes()
    monkeypatch.setattr(loop, "_optimizer_step", one_step)
    resumed = run_cli(*command, tmp_path / "cut")
    assert resumed.code == 0 and "resuming" in resumed.err
    assert (tmp_path / "cut" / "samples-base.png").read_bytes() == base_samples
    assert "resumed once" in (tmp_path / "cut" / "report.html").read_text()
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--set", "stage1.learning_rate=1"), "unknown key 'learning_rate'"),
        (("--set", "stage1.lr=-1"), "stage1.lr"),
        (("--set", "lr"), "expected KEY=VALUE"),
        (("--set", "step=3"), "did you mean steps?"),
        (("--recipe", "llamagen-tinny"), "did you mean llamagen-tiny"),
        (("--gate", "soft"), "branch.gate"),
        (("--branch-layer", 9), "--branch-layer is 9; expected 0..6"),
        (("--probe", "nowhere.json"), "--probe nowhere.json does not exist"),
        (("--data", "./nowhere"), "--data ./nowhere"),
        (("--subset", 0), "--subset is 0"),
        (("--set", "data.subset=0"), "data.subset"),
        (("--set", "data.augment=five-crop"), "--augment is five-crop"),
        (("--set", "data.split=test"), "no use for --split"),
        (("--dtype", "float16"), "too narrow"),
        (("--set", "stage2.distill_weight=0.1"), "frozen backbone"),
        (("--set", "lora.targets=['w1', 'w1']"), "targets has a layer twice"),
        (("--set", "lora.targets=['w9']"), "lora.targets"),
        (("--set", "lora.rank=-1"), "lora.rank: expected a whole number"),
        (("--method", "diffusion"), "method"),
        (("--method", "block-diffusion", "--set", "lora.rank=4"), "block-diffusion trains all weights"),
        (("--method", "block-diffusion", "--set", "engine.attention=flex"), "use sdpa with block-diffusion"),
        (("--method", "block-diffusion", "--set", "diffusion.block=0"), "diffusion.block"),
        (("--method", "block-diffusion", "--gate", "mean"), "branch.* is for the method flashar"),
        (("--method", "block-diffusion", "--set", "engine.strategy=fsdp"), "can't be sharded"),
        (("--method", "block-diffusion", "--probe", "p.json"), "--probe is for the method flashar"),
        (("--set", "diffusion.block=8"), "diffusion.* is for the method block-diffusion"),
    ),
)
def test_bad_options_write_nothing(run_cli, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run_cli("adapt", "llamagen-tiny", "--out", tmp_path / "out", *arguments)
    assert result.code == 2 and words in result.err and result.err.strip().count("\n") <= 1, result.err
    assert not list(tmp_path.iterdir())


def test_an_adapted_model_is_not_adapted_again(run_cli, tmp_path):
    result = run_cli("adapt", "llamagen-tiny-flashar", "--data", "shapes:8", "--out", tmp_path / "out")
    assert result.code == 2 and "has a vertical branch already" in result.err


def test_data_of_another_model_is_caught_before_training(run_cli, write_tiny_checkpoint, tmp_path):
    base = write_tiny_checkpoint(branch=False)
    result = run_cli("adapt", base, "--data", "shapes:20", "--steps", 2, "--out", tmp_path / "out")
    assert result.code == 2 and "no better than chance" in result.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def test_dry_run(run_cli, tmp_path):
    steps = ("--steps", 100, "--set", "stage1_fraction=0.2")
    result = run_cli("adapt", "llamagen-tiny", "--out", tmp_path / "out", *steps, "--dry-run")
    plan = json.loads(result.out)
    assert plan["steps"] == {"stage1": 20, "stage2": 80} and plan["branch"]["layer"] == 5
    size = sum(plan["parameters"].values())
    assert plan["memory_per_device"]["weights_and_optimizer_bytes"] == 16 * size and plan["fits"]
    assert not list(tmp_path.iterdir())


def test_dry_run_says_which_ways_would_fit(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("flashar_cli.adaptation.plan.ASSUMED_DEVICE_BYTES", 2 * 2**30)
    arguments = ("adapt", "llamagen-b", "--out", tmp_path / "out", "--dry-run", "--set", "engine.micro_batch_size=1")
    plan = json.loads(run_cli(*arguments, "--set", "lora.rank=8").out)
    assert plan["memory_per_device"]["lora_rank"] == 8 and plan["parameters"]["adapters"] == 12 * 8 * 13_056
    ways = [(way["lora_rank"], way["processes"], way["fits"]) for way in plan["ways"]]
    assert ways == [(0, 1, False), (0, 2, True), (8, 1, True), (8, 2, True)]
    assert plan["ways"][2] == {**plan["memory_per_device"], "fits": True}


def test_adapters_end_in_a_model_that_every_command_reads(run_cli, tmp_path, small_base):
    common = (*SMALL_RUN, "--steps", 4, "--set", "lora.rank=4", "--set", "lora.targets=['wqkv', 'w2']")
    for name, merge in (("merged", "true"), ("apart", "false")):
        out = tmp_path / name
        result = run_cli("adapt", small_base, *common, "--set", f"lora.merge={merge}", "--out", out)
        assert result.code == 0, result.err
    again = run_cli("adapt", small_base, *common, "--out", tmp_path / "apart", "--overwrite", "--dry-run")
    assert again.code == 0, again.err
    tokens = ("--num-images", 2, "--labels", "1,2", "--out", tmp_path / "tokens.npz")
    assert run_cli("generate", tmp_path / "apart", *tokens).code == 0
    merged, apart = (checkpoint.load(tmp_path / name, torch.device("cpu")).model for name in ("merged", "apart"))
    torch.testing.assert_close(merged.state_dict(), apart.state_dict())
    base, stored = (load_file(folder / "model.safetensors") for folder in (small_base, tmp_path / "apart"))
    assert all(torch.equal(tensor, stored[name]) for name, tensor in base.items())
    assert not (tmp_path / "merged" / "adapter").exists()


def test_dry_run_of_a_preset_needs_no_weights(run_cli, tmp_path):
    arguments = ("adapt", "llamagen-b", "--out", tmp_path / "out", "--batch-size", 256, "--dry-run")
    alone, shared = (json.loads(run_cli(*arguments, *more).out) for more in ((), ("--nproc", 8)))
    assert alone["processes"] == 1 and alone["forwards_per_step"] == 4 and shared["forwards_per_step"] == 1
    # 12 + 1 blocks of 12 * 768^2, two heads and a table of 16384 tokens: 0.13 G parameters of 16 bytes.
    assert 2.05e9 < alone["memory_per_device"]["weights_and_optimizer_bytes"] < 2.2e9
    sharded = json.loads(run_cli(*arguments, "--nproc", 8, "--set", "engine.strategy=fsdp").out)["memory_per_device"]
    whole = shared["memory_per_device"]
    assert sharded["strategy"] == "fsdp" and whole["strategy"] == "ddp"
    assert sharded["weights_and_optimizer_bytes"] == -(-whole["weights_and_optimizer_bytes"] // 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ("full", "low-rank", "shared"))
def test_probe(run_cli, tmp_path, head):
    arguments = ("--data", "shapes:64", "--num-images", 64, "--num-validation", 16, "--head", head, "--rank", 8)
    result = run_cli("probe", "llamagen-tiny", *arguments, "--layers", "0,3-6", "--out", tmp_path, "--json")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "probe.json").read_text())
    assert report == json.loads(result.out)
    assert [row["layer"] for row in report["layers"]] == [0, 3, 4, 5, 6]
    assert report["recommended_layer"] in (0, 3, 4, 5) and report["data_fingerprint"]
    assert "GiB" in result.err
    with Image.open(tmp_path / "probe.png") as plot:
        assert plot.width > 500
    from flashar_cli.probing.report import read_recommendation

    config, sha256 = read_config(hub.resolve("llamagen-tiny")), report["model_sha256"]
    assert read_recommendation(tmp_path / "probe.json", config, sha256, 1) == report["recommended_layer"]
    assert read_recommendation(tmp_path / "probe.json", config, sha256, 3) in (0, 3)
    with pytest.raises(FlasharError, match="other weights"):
        read_recommendation(tmp_path / "probe.json", config, "0" * 64, 1)
    (tmp_path / "half.json").write_text(json.dumps({key: report[key] for key in ("layers", "model_sha256")}))
    with pytest.raises(FlasharError, match="not a probe.json"):
        read_recommendation(tmp_path / "half.json", config, sha256, 1)
    again = run_cli("probe", "llamagen-tiny", *arguments, "--out", tmp_path)
    assert again.code == 2 and "--overwrite" in again.err


def test_probe_of_a_big_model_says_its_memory_first(run_cli, tmp_path, monkeypatch):
    from flashar_cli.families import PRESETS
    from flashar_cli.probing.run import memory_bytes
    from flashar_cli.probing.settings import ProbeSettings

    config = PRESETS["llamagen-xl"].config()
    full = memory_bytes(config, ProbeSettings(layers=tuple(range(37))))
    low = memory_bytes(config, ProbeSettings(layers=tuple(range(37)), head="low-rank"))
    assert full == 16 * 2 * 37 * 1280 * 16384 and low < full / 15


def test_recommendation_is_the_best_layer_that_adds_no_depth():
    from flashar_cli.probing.report import recommend

    rows = [{"layer": layer, "lower_loss": loss} for layer, loss in ((0, 3.0), (1, 2.0), (2, 2.5), (3, 1.0))]
    assert recommend(rows, 2) == 1
    assert recommend(rows, 3) == 3


def test_a_folder_of_images(run_cli, tmp_path, small_base):
    folder = shape_folder(tmp_path / "images")
    arguments = ("--data", folder, "--batch-size", 4, "--set", "data.num_validation=8", "--out", tmp_path / "out")
    result = run_cli("adapt", small_base, *arguments, "--steps", 2)
    assert result.code == 0, result.err
    recipe = read_config(tmp_path / "out").provenance.recipe
    assert recipe is not None and recipe["data"]["source"] == str(folder)
    assert "20 images of" in result.err and "encoding 20 into" in result.err
    again = run_cli("adapt", small_base, *arguments, "--steps", 2, "--overwrite")
    assert again.code == 0 and "their tokens are in" in again.err


@pytest.mark.parametrize("name", ("pics\\new", 'my"pics', "1e5", "null", "a=b # c", "'quoted'"))
def test_options_reach_the_recipe_as_they_are_typed(run_cli, tmp_path, monkeypatch, small_base, name):
    """A path is no TOML: it has no escapes, quotes or types."""
    monkeypatch.chdir(tmp_path)
    shape_folder(tmp_path / name)
    arguments = ("--data", name, "--subset", 12, "--steps", 7, "--out", tmp_path / "out", "--dry-run")
    result = run_cli("adapt", small_base, *arguments, "--set", "data.split=null", "--set", 'branch.gate="mean"')
    assert result.code == 0, result.err
    recipe = json.loads(result.out)["recipe"]
    assert recipe["data"]["source"] == name and recipe["data"]["subset"] == 12 and recipe["steps"] == 7
    assert recipe["data"]["split"] is None and recipe["branch"]["gate"] == "mean"


def test_columns_reach_a_source_as_they_are_typed(run_cli, tmp_path, small_base):
    folder = shape_folder(tmp_path / "images", 4)
    lines = [json.dumps({'my"pic\\new': str(path), "1": 3}) for path in sorted(folder.rglob("*.png"))]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    columns = ("--image-column", 'my"pic\\new', "--label-column", "1")
    for command in ("encode", "probe"):
        arguments = ("--data", tmp_path / "list.jsonl", *columns, "--out", tmp_path / "out", "--dry-run")
        result = run_cli(command, small_base, *arguments)
        assert result.code == 0, result.err
    typed = ("--set", 'data.image_column=my"pic\\new', "--set", 'data.label_column="1"')  # no TOML, so taken as text
    result = run_cli("adapt", small_base, "--data", tmp_path / "list.jsonl", *typed, "--dry-run")
    assert result.code == 0, result.err


def test_an_unreadable_image_writes_nothing(run_cli, tmp_path):
    folder = shape_folder(tmp_path / "images")
    (folder / "ring" / "0005.png").write_bytes((folder / "ring" / "0005.png").read_bytes()[:60])
    for command in ("adapt", "probe"):
        result = run_cli(command, "llamagen-tiny", "--data", folder, "--out", tmp_path / "out")
        assert result.code == 2 and "ring/0005.png cannot be read as an image" in result.err
        assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_code_shards_of_many_views(run_cli, tmp_path, small_base):
    shards = tmp_path / "shards"
    encode = ("--data", "shapes:40", "--augment", "center-flip", "--out", shards)
    assert run_cli("encode", small_base, *encode).code == 0
    arguments = ("--data", shards, "--subset", 30, "--batch-size", 4, "--set", "data.num_validation=8")
    result = run_cli("adapt", small_base, *arguments, "--steps", 2, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "30 images" in result.err
    subset = read_config(tmp_path / "out").provenance.subset
    assert subset is not None and (subset.size, subset.seed) == (30, 0) and len(subset.ids_sha256) == 64
    (shards / "codes-00000.parquet").unlink()
    result = run_cli("probe", small_base, "--data", shards, "--out", tmp_path / "probe")
    assert result.code == 2 and "codes-00000.parquet is missing" in result.err


def test_a_full_disk_during_training_is_one_line(run_cli, tmp_path, monkeypatch, small_base):
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    result = run_cli("adapt", small_base, *SMALL_RUN, "--steps", 2, "--out", tmp_path / "out")
    assert result.code == 2 and "No space left" in result.err and not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.run" / "state").glob("saved-*"))
