"""The model directory that a run starts from."""

import tempfile
from pathlib import Path

import torch

from pixellm.data.prompts import ANSWERS, QUESTIONS
from pixellm.data.sources import shapes_questions
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor, presets
from pixellm.model.load import load_model_dir
from pixellm.storage import exists, join_uri, local_copy, upload_folder
from pixellm.train.config import RANDOM_TINY, TrainConfig

BASE_FOLDER = "base"


def prepare_base(config: TrainConfig) -> str:
    """URI of the model directory that the run starts from. A model with random weights is written into the run's folder first, once."""
    if config.model != RANDOM_TINY:
        return base_uri_of(config)
    uri = base_uri_of(config)
    if not exists(join_uri(uri, "processor_config.json")):
        model, processor = build_random_tiny(config.seed)
        with tempfile.TemporaryDirectory(prefix="pixellm-base-") as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            upload_folder(folder, uri)
    return uri


def build_random_tiny(seed: int) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """`tiny` with random weights; its tokenizer knows the drawn scenes' questions and the question templates."""
    texts = [*shapes_questions.all_texts(), *ANSWERS, *(text for each in QUESTIONS.values() for text in each)]
    return presets.build_tiny(texts, seed)


def base_uri_of(config: TrainConfig) -> str:
    """Where the model directory lies that `config.model` names."""
    if config.model == RANDOM_TINY:
        return join_uri(config.run_uri, BASE_FOLDER)
    if config.model == "tiny":
        return str(presets.pretrained_dir("tiny"))
    return config.model if "://" in config.model else str(Path(config.model).expanduser().absolute())


def load_base(uri: str, dtype: torch.dtype = torch.float32) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """Model and processor of a model directory, local or on storage."""
    folder = local_copy(uri)
    return load_model_dir(folder, dtype)
