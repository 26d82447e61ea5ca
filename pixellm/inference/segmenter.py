"""The friendly face of inference: photos and questions in, sentences with spans and masks out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from pixellm.errors import InputError
from pixellm.inference.engine import FinishReason, GeneratedAnswer, generate
from pixellm.masks import RLE, mask_to_rle, rle_area, rle_box_xywh
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.modeling_pixellm import PhotoFeatures
from pixellm.model.presets import pretrained_dir
from pixellm.storage import local_copy


@dataclass(frozen=True)
class Target:
    """One thing that the answer names: its phrase and span (code points of the text), and its mask at the size of the upright photo.

    `score` is the mean probability inside the mask, in [0, 1]; an empty mask has score 0 and box [0, 0, 0, 0].
    """

    phrase: str
    span: tuple[int, int]
    rle: RLE
    score: float
    box_xywh: list[int]
    area: int


@dataclass(frozen=True)
class Segmentation:
    """An answer. `answer` is `text` with `{seg}` after each target's phrase; `size_hw` is the upright photo's."""

    text: str
    answer: str
    targets: list[Target]
    finish_reason: FinishReason
    num_tokens: int
    size_hw: tuple[int, int]


class Segmenter:
    """A model and its processor, ready to answer. Not safe for use from several threads at once."""

    def __init__(self, model: PixelLMForConditionalGeneration, processor: PixelLMProcessor, batch_size: int = 64):
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

    @classmethod
    def from_pretrained(cls, path: str, dtype: str = "float32", device: str = "cpu", batch_size: int = 64) -> "Segmenter":
        """`path`: a model directory, its URI, or `tiny` for the weights that ship with the package."""
        folder = str(pretrained_dir(path)) if path == "tiny" else str(local_copy(path))
        model = PixelLMForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        return cls(model.to(device), PixelLMProcessor.from_pretrained(folder), batch_size)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = 128) -> list[Segmentation]:
        """Answers `questions[i]` about `images[i]`; the same image object in several places goes through the vision tower once.

        Raises InputError with code `question_empty` for an empty question.
        """
        for index, question in enumerate(questions):
            if not question.strip():
                raise InputError("question_empty", f"question {index} is empty; ask something about the photo")
        if len(images) != len(questions):
            raise ValueError(f"found {len(images)} images but {len(questions)} questions")
        answers: list[Segmentation] = []
        for start in range(0, len(questions), self.batch_size):
            stop = start + self.batch_size
            answers += self._segment_batch(images[start:stop], questions[start:stop], max_new_tokens)
        return answers

    def _segment_batch(self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int) -> list[Segmentation]:
        distinct = {id(image): image for image in images}
        photo_of_id = {key: index for index, key in enumerate(distinct)}
        photo_index = torch.tensor([photo_of_id[id(image)] for image in images])
        inputs = self.processor.image_processor.preprocess(list(distinct.values()))
        device = self.model.device
        photos = self.model.encode_photos(inputs["pixel_values"].to(device), inputs["resized_sizes_hw"].to(device))
        resized = [(int(height), int(width)) for height, width in inputs["resized_sizes_hw"]]
        prompts = self.processor.collate_prompts(questions, [resized[i] for i in photo_index.tolist()])
        generated = generate(self.model, prompts["input_ids"].to(device), prompts["attention_mask"].to(device),
                             photos.image_embeds[photo_index.to(device)], self.processor.tokenizer.eos_token_id, max_new_tokens)
        logits = self._mask_logits(photos, photo_index, generated)
        sizes = [(int(height), int(width)) for height, width in inputs["photo_sizes_hw"]]
        return [self._to_segmentation(answer, answer_logits, resized[photo], sizes[photo])
                for answer, answer_logits, photo in zip(generated, logits, photo_index.tolist(), strict=True)]

    def _mask_logits(self, photos: PhotoFeatures, photo_index: Tensor, generated: Sequence[GeneratedAnswer]) -> Sequence[Tensor]:
        """Mask logits (K, M, M) of each answer, all targets of the batch decoded together."""
        counts = [len(answer.states) for answer in generated]
        if not sum(counts):
            side = self.model.config.mask_size
            return [torch.zeros(0, side, side)] * len(counts)
        states = torch.cat([torch.stack(answer.states) for answer in generated if answer.states])
        photo_of_target = photo_index.repeat_interleave(torch.tensor(counts)).to(states.device)
        mask_logits, _ = self.model.mask_head(photos.scale_features, photo_of_target, states)
        return mask_logits.cpu().split(counts)

    def _to_segmentation(self, answer: GeneratedAnswer, mask_logits: Tensor, resized_size_hw: tuple[int, int],
                         photo_size_hw: tuple[int, int]) -> Segmentation:
        parsed = self.processor.parse_answer(answer.token_ids)
        targets = []
        for logits, span in zip(mask_logits, parsed.spans, strict=True):  # one at a time: a full-size float map is the largest thing here
            photo_logits = self.processor.image_processor.to_photo_masks(logits[None], resized_size_hw, photo_size_hw)[0]
            mask = photo_logits > 0
            score = float((photo_logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6))
            rle = mask_to_rle(mask.numpy())
            targets.append(Target(parsed.text[span[0]:span[1]], span, rle, score, rle_box_xywh(rle), rle_area(rle)))
        assert answer.finish_reason is not None
        return Segmentation(parsed.text, parsed.template, targets, answer.finish_reason, len(answer.token_ids), photo_size_hw)
