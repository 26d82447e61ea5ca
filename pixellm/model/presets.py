"""Named sizes of PixelLM. `tiny` is built here with a tokenizer of its own, a trained one ships with the package; `7b` and `13b` are the
paper's, whose weights come from `jobs.convert_checkpoint`."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from pixellm.errors import ConfigError, ModelError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration
from pixellm.model.processing_pixellm import PixelLMImageProcessor, PixelLMProcessor

TINY_CHAT_TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'user' %}{{ turn.content }}\n"
    "{% else %}{{ turn.content }}{{ eos_token }}{% endif %}{% endfor %}")
TINY_VOCABULARY = 512
IMAGE_TOKEN = "<image>"


def codebook_tokens(num_tokens: int) -> list[str]:
    """`[SEG0]` … as the paper writes them."""
    return [f"[SEG{i}]" for i in range(num_tokens)]


def train_tiny_tokenizer(texts: Iterable[str], num_codebook_tokens: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `TINY_VOCABULARY` ids learnt from `texts` (any text can still be written), then the image and codebook tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", chat_template=TINY_CHAT_TEMPLATE)
    missing = TINY_VOCABULARY - len(fast)  # few texts: keep the ids of what follows the same
    fast.add_tokens([f"<unused{i}>" for i in range(missing)])
    # lstrip: "circle [SEG0]" must not leave a lone space between the word and its group
    fast.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN] + [
        AddedToken(token, lstrip=i == 0, special=True) for i, token in enumerate(codebook_tokens(num_codebook_tokens))]})
    return fast


def tiny_config() -> PixelLMConfig:
    """About 1M parameters each in tower and language model; 96-pixel photos of 12 x 12 patches.

    The language model's initial values are about Xavier's for this width; what the full-size models use (0.02) learns too slowly here.
    """
    num_tokens_per_scale, num_scales = 2, 2
    return PixelLMConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4, image_size=96, patch_size=8,
            projection_dim=128, hidden_act="gelu"),
        text_config=LlamaConfig(
            vocab_size=TINY_VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.08, tie_word_embeddings=False, pad_token_id=0,
            eos_token_id=1, bos_token_id=None),
        image_token_id=TINY_VOCABULARY,
        codebook_token_ids=[TINY_VOCABULARY + 1 + i for i in range(num_tokens_per_scale * num_scales)],
        num_tokens_per_scale=num_tokens_per_scale, vision_feature_layers=[-1, -4], image_tokens_per_side=6,
        decoder_hidden_size=64, decoder_num_heads=4, decoder_mlp_size=256)


# The language models of the paper: LLaVA on Vicuna 7B v1.1 and on Llama 2 13B chat, as their own configurations say.
LANGUAGE_MODELS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}
LLAVA_VOCABULARY = 32003  # Llama's 32,000 pieces, <im_patch>, <im_start>, <im_end>


def preset_config(name: str) -> PixelLMConfig:
    """The architecture of a preset. Raises ConfigError that names the known ones.

    `7b` and `13b`: CLIP ViT-L/14-336 run at 448, features of layers -2 and -11, two scales of three codebook tokens.
    """
    if name == "tiny":
        return tiny_config()
    if name not in LANGUAGE_MODELS:
        raise ConfigError(f"preset {name!r} is not known; known: tiny, {', '.join(LANGUAGE_MODELS)}")
    return PixelLMConfig(
        vision_config=CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                                       image_size=448, patch_size=14, projection_dim=768),
        text_config=LlamaConfig(vocab_size=LLAVA_VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
                                **LANGUAGE_MODELS[name]),
        image_token_id=LLAVA_VOCABULARY, codebook_token_ids=list(range(LLAVA_VOCABULARY + 1, LLAVA_VOCABULARY + 7)))


def build_tiny(texts: Iterable[str], seed: int = 0) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """`tiny` with random weights and its processor, whose tokenizer is learnt from `texts`."""
    config = tiny_config()
    torch.manual_seed(seed)
    model = PixelLMForConditionalGeneration(config)
    for module in model.vision_tower.modules():  # CLIP's own initial values are made for towers that train for weeks
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
    tokenizer = train_tiny_tokenizer(texts, len(config.codebook_token_ids))
    return model, build_processor(config, tokenizer)


def build_image_processor(config: PixelLMConfig, **statistics: list[float]) -> PixelLMImageProcessor:
    """The image processor that fits `config`; `statistics` are `image_mean` and `image_std`, CLIP's where they are not given."""
    return PixelLMImageProcessor(image_size=config.vision_config.image_size, image_tokens_per_side=config.image_tokens_per_side,
                                 mask_size=config.mask_size, **statistics)


def build_processor(config: PixelLMConfig, tokenizer: PreTrainedTokenizerFast, **statistics: list[float]) -> PixelLMProcessor:
    """The processor that fits `config`. Raises ModelError for a tokenizer with other ids, or with tokens that have no row in the tables."""
    tokens = codebook_tokens(len(config.codebook_token_ids))
    expected = dict(zip([IMAGE_TOKEN, *tokens], [config.image_token_id, *config.codebook_token_ids], strict=True))
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in expected}
    if found != expected:
        raise ModelError(f"the tokenizer's ids are {found}, the model's {expected}; give the tokenizer of this checkpoint")
    beyond = {token: id_ for token, id_ in tokenizer.get_vocab().items()
              if token not in expected and id_ >= config.text_config.vocab_size}
    if beyond:
        raise ModelError(f"the language model's tables have {config.text_config.vocab_size} rows, none for {beyond}")
    return PixelLMProcessor(build_image_processor(config, **statistics), tokenizer, image_token=IMAGE_TOKEN, codebook_tokens=tokens,
                            max_length=config.text_config.max_position_embeddings)


def pretrained_dir(name: str) -> Path:
    """Folder of the trained weights that ship with the package. Raises ConfigError when there are none for `name`."""
    folder = Path(str(resources.files("pixellm.model") / "pretrained" / name))
    if not (folder / "config.json").is_file():
        raise ConfigError(f"no weights for {name!r} ship with this package; give the path or URI of a model directory")
    return folder
