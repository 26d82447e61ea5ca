"""Variants of one warm start, and the table of their results."""

import pytest
import torch

from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.presets import pretrained_dir
from pixellm.settings import load_yaml
from pixellm.train.ablation import AblateConfig, Variant, build_variant
from pixellm.train.ablation_table import build_table, difference, mean_over_seeds, to_markdown
from tests.conftest import ROOT

CONFIG = ROOT / "jobs/configs/ablate_tiny_cpu.yaml"


@pytest.mark.parametrize("variant", load_yaml(CONFIG, AblateConfig).variants, ids=lambda variant: variant.name)
def test_every_variant_has_its_shape_and_the_warm_starts_weights(variant):
    torch.manual_seed(1)
    model, processor, num_kept = build_variant("tiny", variant)
    config, num_tokens = model.config, variant.num_scales * variant.num_tokens_per_scale
    assert (config.num_scales, config.num_tokens_per_scale, config.fusion) == (
        variant.num_scales, variant.num_tokens_per_scale, variant.fusion)
    assert len(model.codebook.input_rows) == num_tokens == len(processor.codebook_tokens)
    ids, _ = processor.conversation_ids("what can roll?", "the red circle {seg}.")
    assert [token for token in ids if token in config.codebook_token_ids] == list(config.codebook_token_ids)
    assert num_kept / model.num_parameters() > 0.94
    base, _, _ = build_variant("tiny", Variant(name="base"))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in base.state_dict().items()
               if name.startswith(("vision_tower.", "language_model.", "projector.")))


def test_no_variant_keeps_the_warm_starts_codebook():
    torch.manual_seed(10_000)
    model, _, _ = build_variant("tiny", Variant(name="base"))
    warm = PixelLMForConditionalGeneration.from_pretrained(pretrained_dir("tiny"), dtype=torch.float32)
    for rows, others in ((model.codebook.input_rows, warm.codebook.input_rows), (model.codebook.output_rows, warm.codebook.output_rows)):
        assert torch.nn.functional.cosine_similarity(rows, others).abs().max() < 0.35  # 128 dimensions: 0.26 seen, 0.93 from seed 0


def test_two_variants_of_one_name():
    with pytest.raises(ValueError, match="two variants are called a"):
        AblateConfig(output="x", steps=1, variants=(Variant(name="a"), Variant(name="a")))


def test_intervals_of_few_seeds_are_wide():
    found = mean_over_seeds([0.4, 0.5, 0.6])
    assert found.value == pytest.approx(0.5) and found.high - found.value == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert difference([0.1, 0.5, 0.9], [0.2, 0.61, 1.0]).excludes_zero, "seeds differ, the differences hardly"
    assert not difference([0.1, 0.5, 0.9], [0.3, 0.4, 1.0]).excludes_zero


def test_a_direction_is_claimed_only_where_the_interval_excludes_zero():
    def trials(*values):
        return [{"giou": value, "ciou": value, "wrong_count_share": 1 - value, "share_from_warm_start": 0.9} for value in values]

    results = {"base": trials(0.5, 0.6, 0.7), "better": trials(0.61, 0.7, 0.81), "alike": trials(0.4, 0.7, 0.7)}
    table = to_markdown(build_table(results), "about")
    base, better, alike = table.splitlines()[-3:]
    assert "more" not in base and "less" not in base and base.startswith("| base | 0.600 ± 0.248 |")
    assert better.count("**more**") == 2 and better.count("**less**") == 1
    assert alike.count("not told apart") == 3
