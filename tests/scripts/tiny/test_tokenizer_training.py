"""Training of the small tokenizer and of the shape classifier, in miniature."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from flashar_cli.config import MultiScaleVQConfig, TokenizerConfig, VQConfig
from flashar_cli.data.shapes import TRAINING_SEED, draw_batch
from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.shape_classifier import ShapeClassifier
from flashar_cli.tokenizers import build_tokenizer
from flashar_cli.tokenizers.codebook import CodebookTokenizer
from flashar_cli.tokenizers.ibq import IBQTokenizer
from flashar_cli.tokenizers.pixels import from_uint8
from flashar_cli.tokenizers.vq import VQTokenizer
from scripts.tiny.classifier_training import ClassifierTraining, evaluate_classifier, train_classifier
from scripts.tiny.codebook import merge_codes
from scripts.tiny.codebook_average import CodebookAverage
from scripts.tiny.scale_tokenizer import SCALES, ScaleTraining, evaluate_scale_tokenizer
from scripts.tiny.tokenizer_training import (
    TINY_CONFIG,
    TokenizerTraining,
    drawn,
    evaluate_tokenizer,
    load_trained_tokenizer,
    save_trained_tokenizer,
    train_tokenizer,
)
from scripts.tiny.widening import widened_config

SMALL = VQConfig(
    codebook_size=16,
    codebook_dim=4,
    channels=32,
    encoder_multipliers=(1, 1, 1, 1),
    decoder_multipliers=(1, 1, 1, 1),
    num_res_blocks=1,
    latent_channels=8,
)
SETTINGS = TokenizerTraining(
    steps=2, batch_size=1, continuous_steps=1, blending_steps=1, restart_every=1, compiled=False, bfloat16=False
)


@pytest.mark.parametrize("config", (SMALL, widened_config(SMALL)), ids=("vq", "ibq"))
def test_training_moves_weights_and_codes_and_is_repeatable(config: TokenizerConfig) -> None:
    settings = replace(SETTINGS, restart_until=0.0)
    first, second = train_tokenizer(config, settings), train_tokenizer(config, settings)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    other = train_tokenizer(config, replace(settings, seed=1))
    assert not torch.equal(first.encoder.conv_in.weight, other.encoder.conv_in.weight)
    assert all(parameter.requires_grad for parameter in first.parameters())
    lengths = first.quantize.embedding.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(16), rtol=0, atol=1e-5)
    report = evaluate_tokenizer(first, num_images=4, batch_size=3)
    assert report.psnr_db > 0 and 1 <= report.codes_used <= 16
    assert 0 <= report.code_entropy_given_left_nats <= report.code_entropy_nats + 1e-9


@pytest.mark.parametrize("tokenizer", (VQTokenizer(SMALL), IBQTokenizer(widened_config(SMALL))), ids=("vq", "ibq"))
def test_what_was_written_is_loaded_again(tokenizer: CodebookTokenizer, tmp_path: Path) -> None:
    written = save_trained_tokenizer(tmp_path, tokenizer.eval(), {"seed": 3}, num_images=1)
    loaded = load_trained_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config and written["seed"] == 3
    rounded = {name: tensor.half().float() for name, tensor in tokenizer.state_dict().items()}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in loaded.state_dict().items())
    assert written["held_out"] == asdict(evaluate_tokenizer(loaded, num_images=1))


def test_a_tokenizer_of_several_scales_is_trained() -> None:
    """Its codes have any length. More scales come closer to the image, here of one that was trained on."""
    config = MultiScaleVQConfig(codebook_size=16, codebook_dim=4, channels=32, multipliers=(1, 1, 1), num_res_blocks=1)
    settings = replace(SETTINGS, steps=3)
    first, second = train_tokenizer(config, settings), train_tokenizer(config, settings)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    fresh = train_tokenizer(config, replace(settings, steps=0))
    moved = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, fresh.state_dict()[name])}
    for part in ("encoder.conv_in", "quant_conv", "quantizer.residuals.0", "post_quant_conv", "decoder.conv_out"):
        assert f"{part}.weight" in moved, part
    assert "quantizer.embedding.weight" in moved
    report = evaluate_scale_tokenizer(first, drawn(TRAINING_SEED, 0, 4, False).split(3))
    assert report.num_images == 4 and len(report.psnr_db_of_scales) == len(SCALES)
    assert report.psnr_db == report.psnr_db_of_scales[-1] and 1 <= report.codes_used <= 16


def test_the_training_forward_is_what_the_tokenizer_encodes_and_decodes() -> None:
    torch.manual_seed(0)
    config = MultiScaleVQConfig(codebook_size=16, codebook_dim=4, channels=32, multipliers=(1, 1, 1), num_res_blocks=1)
    tokenizer = build_tokenizer(config).eval()
    images = drawn(TRAINING_SEED, 0, 2, False)
    with torch.no_grad():
        output = ScaleTraining(tokenizer)(images)
        tokens = tokenizer.encode(images, SCALES)
        assert all(torch.equal(*pair) for pair in zip(output.encoded[0], tokens, strict=True))
        torch.testing.assert_close(output.reconstruction, tokenizer.decode(tokens, SCALES), atol=1e-5, rtol=0)
        latents = [tokenizer.latent(tokens[: last + 1], SCALES) for last in range(len(SCALES))]
        errors = torch.stack([torch.nn.functional.mse_loss(each, output.latent) for each in latents])
    torch.testing.assert_close(output.codebook_loss, errors.mean())
    torch.testing.assert_close(output.commitment_loss, errors.mean())


def test_codes_follow_the_latents_that_chose_them() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    average = CodebookAverage(codebook, 0.0, 0, unit=True)
    latent = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0], [1.0, 0.0], [-1.0, 1.0]]), dim=1)
    latent_bzhw = latent.t().reshape(1, 2, 1, 3)
    average.update([torch.tensor([[[0, 0, 1]]])], [latent_bzhw])
    expected = torch.nn.functional.normalize(latent[0] + latent[1], dim=0)
    torch.testing.assert_close(codebook, torch.stack([expected, latent[2], torch.tensor([-1.0, 0.0])]))
    assert average.restart_unused([latent_bzhw], below=0.5) == 1
    assert (codebook[2] == latent).all(dim=1).any()


def test_codes_of_any_length_are_means_over_all_maps() -> None:
    codebook = torch.zeros(2, 2)
    average = CodebookAverage(codebook, 0.5, 0, unit=False)
    maps = [
        torch.tensor([[4.0], [2.0]]).reshape(1, 2, 1, 1),
        torch.tensor([[1.0, 3.0], [5.0, 0.0]]).reshape(1, 2, 1, 2),
    ]
    average.update([torch.tensor([[[0]]]), torch.tensor([[[0, 1]]])], maps)
    torch.testing.assert_close(codebook, torch.tensor([[2.5, 3.5], [3.0, 0.0]]))
    average.update([torch.tensor([[[1]]])], [maps[0]])  # half as heavy as before, then one more
    torch.testing.assert_close(codebook, torch.tensor([[2.5, 3.5], [(0.25 * 3 + 0.5 * 4) / 0.75, 0.5 * 2 / 0.75]]))


def test_close_codes_are_merged_and_the_rest_stays() -> None:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(SMALL).eval()
    vectors = torch.eye(4).repeat(4, 1)
    vectors = vectors + 0.01 * torch.randn_like(vectors) * (torch.arange(16) >= 4)[:, None]
    tokenizer.quantize.embedding.weight.data = vectors
    images = from_uint8(draw_batch(0, 0, 2)[0])
    merged = merge_codes(tokenizer, images, 4)
    assert merged.config.codebook_size == 4
    likeness = merged.quantize.codebook() @ torch.eye(4)
    assert sorted(likeness.argmax(dim=1).tolist()) == [0, 1, 2, 3] and likeness.amax(dim=1).min() > 0.99
    assert torch.equal(merged.decoder.conv_in.weight, tokenizer.decoder.conv_in.weight)
    assert merged.encode(images).max() < 4
    unchanged = merge_codes(tokenizer, images, 16)
    assert torch.equal(unchanged.encode(images), tokenizer.encode(images))
    with pytest.raises(FlasharError, match=r"16 codes into 17; expected 2 \.\. 16"):
        merge_codes(tokenizer, images, 17)


def test_the_shipped_sizes_stay_small() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in VQTokenizer(TINY_CONFIG).parameters()) <= 650_000
        wide = IBQTokenizer(widened_config(TINY_CONFIG))
        assert sum(parameter.numel() for parameter in wide.parameters()) <= 1_000_000
        assert sum(parameter.numel() for parameter in ShapeClassifier().parameters()) <= 120_000


def test_the_classifier_trains_and_is_judged_on_held_out_images() -> None:
    tokenizer = VQTokenizer(SMALL).eval()
    settings = ClassifierTraining(num_images=10, num_decoded=4, steps=2, batch_size=4)
    model = train_classifier(tokenizer, settings)
    report = evaluate_classifier(model, tokenizer, num_images=10)
    assert report.num_images == 10 and 0 <= report.accuracy_decoded <= 1
    images = from_uint8(draw_batch(0, 0, 3)[0])
    with torch.no_grad():
        assert model(images).shape == (3, 10) and model.features(images).shape == (3, 64)
        assert torch.equal(model.classify(images), model(images).argmax(-1))
    with pytest.raises(FlasharError, match="takes"):
        model.features(torch.zeros(1, 3, 32, 32))
