"""What each part of the model and of its data is worth, on drawn scenes: variants of `tiny`, each trained from one warm start with
several seeds, all judged on the same held-out scenes. Ray Tune runs the trials; one that has its result is not run again.

From the warm start every variant takes what does not depend on it: tower, language model, and the mask head but for the fusion. Codebook
and fusion are drawn anew in all of them, and so is the decoder of a third scale.
"""

import functools
import io
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from ray import tune

from pixellm.data.collate import Collator
from pixellm.data.schema import region_rle
from pixellm.data.sources.shapes import ShapesSource
from pixellm.data.spans import StreamedRow
from pixellm.errors import PixelLMError
from pixellm.evaluation.metrics import score_questions, summarize
from pixellm.inference.segmenter import Segmenter
from pixellm.masks import union_rles
from pixellm.model import PixelLMConfig, PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.load import load_model_dir
from pixellm.model.packing import unpack_batch
from pixellm.model.presets import IMAGE_TOKEN, build_image_processor, codebook_tokens, pretrained_dir
from pixellm.settings import StrictModel
from pixellm.storage import exists, join_uri, local_copy, read_bytes, write_bytes
from pixellm.train.config import LearningRates, LossWeights, TrainConfig
from pixellm.train.forward import forward_losses, weighted_loss
from pixellm.train.parameters import select_parameters
from pixellm.train.step import learning_rate_factor
from pixellm.uris import ModelUri, Uri

FEATURE_LAYERS = (-1, -4, -6)  # of the tower, deepest first; the first ones of a variant with fewer scales
HELD_OUT_SEED = 3
# Weights are drawn from SEED_OFFSET + seed. From 0, the variant whose shape is the warm start's would draw the very codebook rows that the
# warm start began with and has stayed near to.
SEED_OFFSET = 10_000


class Variant(StrictModel):
    """One setting; the defaults are those of `tiny`."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    num_scales: int = Field(2, ge=1, le=len(FEATURE_LAYERS))
    num_tokens_per_scale: int = Field(2, ge=1, le=4)
    fusion: Literal["linear", "mean"] = Field("linear", description="linear: phi of the paper; mean: no fusion, the tokens are averaged")
    refinement_alpha: float = Field(2.0, ge=1, description="1 turns the target refinement off")
    num_scenes: int = Field(1500, gt=0, description="drawn scenes to train on, seen again when they are used up")
    questions: Literal["reasoning", "naming", "both"] = "reasoning"


class AblateConfig(StrictModel):
    """All variants with all seeds, each for `steps` steps on one core."""

    output: Uri = Field(description="URI of the folder for the trials' results and the table")
    model: ModelUri = Field("tiny", description="the warm start: a model directory of the tiny architecture")
    variants: tuple[Variant, ...] = Field(min_length=2, description="the first one is what the others are compared with")
    num_seeds: int = Field(3, ge=2, description="trainings of each variant; a seed means the same order of scenes for all")
    steps: int = Field(gt=0)
    photos_per_step: int = Field(6, gt=0)
    max_conversations_per_photo: int = Field(4, gt=0)
    learning_rates: LearningRates = LearningRates()
    loss_weights: LossWeights = LossWeights()
    warmup_steps: int = Field(20, ge=0)
    num_held_out: int = Field(120, gt=0, description="scenes with reasoning questions, six each, that nobody trains on")
    max_new_tokens: int = Field(96, gt=0)
    cpus_per_trial: float = Field(1, gt=0, description="trials run beside each other as far as the cluster's CPUs go")

    @model_validator(mode="after")
    def _names_differ(self) -> "AblateConfig":
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"two variants are called {max(names, key=names.count)}; give each a name of its own")
        return self

    def trial_uri(self, variant: str, seed: int) -> str:
        """Where the result of one trial lies."""
        return join_uri(self.output, "trials", f"{variant}-{seed}.json")


def run_trials(config: AblateConfig, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Results by variant, one for each seed. Runs those that are not there yet, on the Ray cluster that is connected.

    Raises PixelLMError when trials fail; those that did not are kept.
    """
    todo = [{"variant": variant.model_dump(), "seed": seed} for seed in range(config.num_seeds) for variant in config.variants
            if not exists(config.trial_uri(variant.name, seed))]
    num_trials = config.num_seeds * len(config.variants)
    say(f"ablate: {len(todo)} of {num_trials} trials to run, {config.steps} steps each")
    if todo:
        tuner = tune.Tuner(
            tune.with_resources(functools.partial(_trial, config=config.model_dump()), {"cpu": config.cpus_per_trial}),
            param_space={"trial": tune.grid_search(todo)}, run_config=tune.RunConfig(verbose=0))
        errors = tuner.fit().errors
        if errors:
            raise PixelLMError(f"{len(errors)} of {len(todo)} trials failed, the first: {errors[0]}; run this again for those that did")
    return {variant.name: [_read_result(config, variant, seed) for seed in range(config.num_seeds)] for variant in config.variants}


def _read_result(config: AblateConfig, variant: Variant, seed: int) -> dict[str, Any]:
    """Raises PixelLMError for the result of another setting under the same name."""
    result = json.loads(read_bytes(config.trial_uri(variant.name, seed)))
    settings = _settings(config, variant, seed)
    if result["settings"] != settings:
        raise PixelLMError(f"{config.trial_uri(variant.name, seed)} was made with other settings; give another output, or delete it")
    return result


def _settings(config: AblateConfig, variant: Variant, seed: int) -> dict[str, Any]:
    """All that a result depends on, as JSON has it."""
    whole = config.model_dump(mode="json", exclude={"output", "variants", "num_seeds", "cpus_per_trial"})
    return json.loads(json.dumps(whole | {"variant": variant.model_dump(), "seed": seed}))


def _trial(params: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """In a process of Ray Tune."""
    whole, variant, seed = AblateConfig.model_validate(config), Variant.model_validate(params["trial"]["variant"]), params["trial"]["seed"]
    result = run_trial(whole, variant, seed)
    write_bytes(whole.trial_uri(variant.name, seed), json.dumps(result | {"settings": _settings(whole, variant, seed)}).encode())
    return {name: value for name, value in result.items() if isinstance(value, float | int)}


def run_trial(config: AblateConfig, variant: Variant, seed: int) -> dict[str, Any]:
    """Train one variant and judge it: `giou`, `ciou`, `giou_per_question`, `wrong_count_share`, and the mean `loss` of the last tenth."""
    torch.set_num_threads(max(1, int(config.cpus_per_trial)))
    torch.manual_seed(SEED_OFFSET + seed)
    model, processor, num_kept = build_variant(config.model, variant)
    loss = train_variant(model, processor, config, variant, seed)
    return judge_variant(model, processor, config) | {"loss": loss, "share_from_warm_start": num_kept / model.num_parameters()}


def build_variant(base: str, variant: Variant) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor, int]:
    """A model of the variant's shape, its processor, and how many of its parameters are the warm start's."""
    folder = pretrained_dir(base) if base == "tiny" else local_copy(base)
    warm, warm_processor = load_model_dir(folder)
    tokens = codebook_tokens(variant.num_scales * variant.num_tokens_per_scale)
    tokenizer = warm_processor.tokenizer
    tokenizer.add_tokens([token for token in tokens if token not in tokenizer.get_vocab()], special_tokens=True)
    values = warm.config.to_dict() | {
        "num_tokens_per_scale": variant.num_tokens_per_scale, "vision_feature_layers": FEATURE_LAYERS[:variant.num_scales],
        "scale_upsampling": [1] + [2] * (variant.num_scales - 1), "fusion": variant.fusion,
        "codebook_token_ids": tokenizer.convert_tokens_to_ids(tokens)}
    config = PixelLMConfig(**{name: value for name, value in values.items() if name != "model_type"})
    model = PixelLMForConditionalGeneration(config)
    known = warm.state_dict()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    kept = {name: value for name, value in known.items() if shapes.get(name) == value.shape
            and not name.startswith(("codebook.", "mask_head.fusion."))}
    model.load_state_dict(kept, strict=False)
    processor = PixelLMProcessor(build_image_processor(config, image_mean=warm_processor.image_processor.image_mean,
                                                       image_std=warm_processor.image_processor.image_std),
                                 tokenizer, image_token=IMAGE_TOKEN, codebook_tokens=tokens,
                                 max_length=config.text_config.max_position_embeddings)
    return model, processor, sum(value.numel() for name, value in kept.items() if name in dict(model.named_parameters()))


def train_variant(model: PixelLMForConditionalGeneration, processor: PixelLMProcessor, config: AblateConfig, variant: Variant,
                  seed: int) -> float:
    """Trains in place; the mean loss of the last tenth of the steps."""
    training = TrainConfig.model_validate({
        "run": "ablation", "storage": "none", "data": ["none"], "steps": config.steps, "warmup_steps": config.warmup_steps,
        "refinement_alpha": variant.refinement_alpha, "learning_rates": config.learning_rates, "loss_weights": config.loss_weights})
    groups = select_parameters(model, training)
    optimizer = torch.optim.AdamW([{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in groups],
                                  betas=(0.9, 0.95), weight_decay=0.0)
    kinds = ("reasoning", "naming") if variant.questions == "both" else (variant.questions,)
    sources = [ShapesSource.model_validate({"num_scenes": variant.num_scenes, "questions": kind, "seed": 1000 + seed}) for kind in kinds]
    collator, losses = Collator(processor, config.max_conversations_per_photo, seed), []
    model.train()
    for step in range(config.steps):
        rows = [_row(sources, variant.num_scenes, seed, step * config.photos_per_step + place) for place in range(config.photos_per_step)]
        batch = collator.build(rows)
        for group, chosen in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = chosen.learning_rate * learning_rate_factor(step, training)
        found = forward_losses(model, unpack_batch(batch.tensors), training)
        loss = weighted_loss(found, config.loss_weights, max(batch.num_answer_tokens, 1), max(batch.num_masks, 1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter for group in groups for parameter in group.parameters.values()], 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-math.ceil(config.steps / 10):]))


def _row(sources: list[ShapesSource], num_scenes: int, seed: int, visit: int) -> StreamedRow:
    """The scenes of an epoch in an order of its own; of several sources in turn."""
    epoch, place = divmod(visit, num_scenes)
    scene = int(np.random.default_rng([seed, epoch]).permutation(num_scenes)[place])
    row = sources[visit % len(sources)].build_row(scene)
    return StreamedRow(row, epoch, row["image_id"])


def judge_variant(model: PixelLMForConditionalGeneration, processor: PixelLMProcessor, config: AblateConfig) -> dict[str, float]:
    """On the held-out scenes, by free generation."""
    source = ShapesSource.model_validate({"num_scenes": config.num_held_out, "seed": HELD_OUT_SEED, "split": "val"})
    rows = [source.build_row(scene) for scene in range(config.num_held_out)]
    photos = {row["image_id"]: Image.open(io.BytesIO(row["image"])).convert("RGB") for row in rows}
    asked = [(photos[row["image_id"]], row, conversation) for row in rows for conversation in row["conversations"]]
    answers = Segmenter(model, processor).segment([photo for photo, _, _ in asked], [str(each["question"]) for *_, each in asked],
                                                  config.max_new_tokens)
    true = [[union_rles([region_rle(row["regions"][region]) for region in target], (row["height"], row["width"]))
             for target in conversation["targets"]] for _, row, conversation in asked]
    metrics = summarize(score_questions([([target.rle for target in answer.targets], masks)
                                         for answer, masks in zip(answers, true, strict=True)])).all
    return {"giou": metrics.giou or 0.0, "ciou": metrics.ciou or 0.0, "giou_per_question": metrics.giou_per_question or 0.0,
            "wrong_count_share": metrics.num_wrong_count / metrics.num_questions}
