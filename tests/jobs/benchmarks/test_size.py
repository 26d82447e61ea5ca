"""Counts against figures that others published, and against sums by hand."""

from jobs.benchmarks.size import Config, run


def test_known_parts_have_their_known_sizes():
    headline = run(Config(suite="size", presets=["7b", "13b"])).headline
    sizes = headline["params_by_part"]
    new_rows = 3 * 2  # <im_patch>, <im_start>, <im_end>, in both tables
    assert sizes["7b"]["language_model"] == 6_738_415_616 + new_rows * 4096  # LLaMA 7B, as its model card's index says
    assert sizes["13b"]["language_model"] == 13_015_864_320 + new_rows * 5120
    assert sizes["7b"]["vision_tower"] == 303_507_456 + (32 * 32 - 24 * 24) * 1024  # CLIP ViT-L/14-336, more patches at 448
    assert sizes["7b"]["projector"] == 1024 * 8192 + 8192 + 8192 * 4096 + 4096
    trained = headline["trainable_params"]["7b"]
    assert trained["language_model"] == 32 * 2 * 8 * (4096 + 4096) and trained["vision_tower"] == 0
    assert trained["mask_head.decoder"] == sizes["7b"]["mask_head.decoder"] and trained["codebook"] == 2 * 6 * 4096
    assert headline["lora_layers"]["13b"] == [f"model.layers.{i}.self_attn.{name}" for i in range(40) for name in ("q_proj", "v_proj")]
