"""Weights of others -> a model directory: `python -m jobs.convert_checkpoint official=DIR vision_tower=DIR out=DIR`.

`official` is a released PixelLM checkpoint, whose outputs are kept. `from_llava=DIR` is a LLaVA checkpoint to start training from, in
Hugging Face form, or with `vision_tower=DIR` in its authors'.
"""

import sys
from collections import Counter
from pathlib import Path

from pydantic import Field, model_validator

from pixellm.errors import PixelLMError
from pixellm.model import conversion
from pixellm.model.llama_tokenizer import Conversation, load_llama_tokenizer
from pixellm.model.presets import IMAGE_TOKEN, build_processor, codebook_tokens
from pixellm.model.tensor_plan import Plan, write_model
from pixellm.settings import Seed, StrictModel, parse_command_line


class ConvertConfig(StrictModel):
    """What to read and what neither tensors nor published folders say."""

    official: Path | None = Field(None, description="folder of a released PixelLM checkpoint")
    from_llava: Path | None = Field(None, description="folder of a LLaVA checkpoint, instead of `official`")
    vision_tower: Path | None = Field(None, description="folder of the CLIP vision tower; LLaVA in Hugging Face form holds its own")
    out: Path = Field(description="the model directory; files of the same names are replaced")
    tokenizer: Path | None = Field(None, description="folder of the LLaMA tokenizer; default: the checkpoint's")
    conversation: Conversation = Field("llava_v1", description="how prompts read: llava_v1 (the 7B weights), llava_llama_2 (13B)")
    num_tokens_per_scale: int = Field(3, gt=0, description="N, codebook tokens per scale")
    codebook_token_ids: tuple[int, ...] | None = Field(None, description="ids of [SEG0] …, to be checked against the tokenizer's")
    language_model: conversion.LanguageModelSettings | None = Field(None, description="only for a checkpoint without config.json")
    seed: Seed = Field(0, description="of the mask head's initial values, which LLaVA has none of")

    @model_validator(mode="after")
    def _one_source(self) -> "ConvertConfig":
        if (self.official is None) == (self.from_llava is None):
            raise ValueError("give one of official=DIR and from_llava=DIR")
        return self


def convert(config: ConvertConfig) -> Plan:
    """Writes the model directory. Raises ModelError before anything is written."""
    folder = config.official or config.from_llava
    assert folder is not None, "the configuration sees to it"
    tokens = codebook_tokens(config.num_tokens_per_scale * len(conversion.FEATURE_LAYERS))
    tokenizer = load_llama_tokenizer(config.tokenizer or folder, config.conversation, tokens, config.official is not None)
    ids = list(config.codebook_token_ids or tokenizer.convert_tokens_to_ids(tokens))
    arguments = config.vision_tower, ids, config.num_tokens_per_scale, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), config.language_model
    if config.official is not None:
        model_config, plan = conversion.plan_official(folder, *arguments)
        statistics = conversion.OFFICIAL_IMAGE_STATISTICS
    else:
        model_config, plan = conversion.plan_llava(folder, *arguments, seed=config.seed)
        statistics = conversion.read_image_statistics(config.vision_tower or folder)
    processor = build_processor(model_config, tokenizer, **statistics)
    write_model(model_config, plan, config.out)
    processor.save_pretrained(config.out)
    return plan


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(ConvertConfig, __doc__ or "", argv)
    try:
        plan = convert(config)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    for reason, count in Counter(plan.unused.values()).items():
        print(f"left out {count} stored tensors: {reason}")
    print(f"wrote {len(plan.read)} tensors to {config.out}")


if __name__ == "__main__":
    main()
