"""The pixel decoder for inference: the numbers of `MaskHead`, with what depends only on the photo computed once and the rest reassociated.

A target has T = 6 tokens against a grid of G = 1,024 to 4,096 cells. The released order projects every cell to keys, values and queries for
every target; here the tokens are folded through those projections instead, (T H) rows against the cells as they are. In the first block the
cells are still the photo's, times one factor per cell: its projections are the photo's alone, and are kept with it.
Letters: K targets, L scales, C width, g x g grid of G cells, M side of the mask; T tokens, H heads of d inner channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixellm.inference.cpu import linear
from pixellm.model.modeling_pixellm import MaskHead
from pixellm.model.pixel_decoder import Attention, PixelDecoder, TwoWayBlock

CHUNK_CELLS = 4 * 4096  # cells of the targets that are decoded together: 16 MB of float32 at C = 256


@dataclass(frozen=True, eq=False)
class ScaleFeatures:
    """One photo at one scale: `cells` (G, C), and what the first block's projections without bias make of them, (H, d, G) each."""

    cells: Tensor
    key: Tensor
    value: Tensor
    query: Tensor


@dataclass(frozen=True, eq=False)
class PhotoMaskFeatures:
    """All that the mask decoder keeps of a photo, deepest scale first."""

    scales: tuple[ScaleFeatures, ...]

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return sum(tensor.nbytes for scale in self.scales for tensor in (scale.cells, scale.key, scale.value, scale.query))


class MaskDecoder:
    """Decodes targets of any mix of photos, for one thread at a time.

    It takes the weights of `mask_head` as they are when it is built: build it again after they change.
    """

    def __init__(self, mask_head: MaskHead):
        self._head = mask_head
        factors = mask_head.decoder.scale_upsampling
        patches_per_side = mask_head.mask_size // (2 * max(factors))
        self._chunk_size = max(1, CHUNK_CELLS // (patches_per_side * max(factors)) ** 2)
        with torch.inference_mode():
            self._scales = [_ScaleDecoder(mask_head.decoder, scale, factor * patches_per_side, self._chunk_size)
                            for scale, factor in enumerate(factors)]
            self._weights = mask_head.decoder.scale_weights().tolist()

    @torch.inference_mode()
    def prepare(self, scale_features: Sequence[Tensor]) -> PhotoMaskFeatures:
        """L tensors (P, D_v) of one photo, as `encode_photos` gives them -> what all its targets share."""
        features = self._head.decoder_features(tuple(tokens.unsqueeze(0) for tokens in scale_features))
        return PhotoMaskFeatures(tuple(decoder.prepare(grid) for decoder, grid in zip(self._scales, features, strict=True)))

    @torch.inference_mode()
    def decode(self, photos: Sequence[PhotoMaskFeatures], photo_of_target: Sequence[int], states: Tensor) -> Tensor:
        """Codebook states (K, L*N, D) of targets on `photos[photo_of_target[k]]` -> mask logits (K, M, M).

        Targets of one photo are decoded together, a bounded number at a time, so memory does not grow with K beyond the result.
        """
        prompts = self._head.fuse(states)
        mask_logits = states.new_empty(len(states), self._head.mask_size, self._head.mask_size)
        for index, photo in enumerate(photos):
            targets = [k for k, owner in enumerate(photo_of_target) if owner == index]
            for start in range(0, len(targets), self._chunk_size):
                chunk = torch.tensor(targets[start:start + self._chunk_size], device=states.device)
                mask_logits[chunk] = self._decode_chunk(photo, prompts[chunk])
        return mask_logits

    def _decode_chunk(self, photo: PhotoMaskFeatures, prompts: Tensor) -> Tensor:
        """prompts (K, L, C) of one photo -> (K, M, M)."""
        size = (self._head.mask_size, self._head.mask_size)
        combined, factor, scale_logits = None, None, None
        for scale, (decoder, features, weight) in enumerate(zip(self._scales, photo.scales, self._weights, strict=True)):
            if scale_logits is not None:  # eq. 4: f^l' = f^l * (sigmoid(m^{l+1}) + 1)
                factor = (_resize(scale_logits, (decoder.side, decoder.side)).sigmoid() + 1).flatten(1)
            scale_logits = decoder.decode(features, factor, prompts[:, scale])
            weighted = weight * _resize(scale_logits, size)
            combined = weighted if combined is None else combined + weighted
        return combined


class _ScaleDecoder:
    """The two-way transformer and mask head of one scale, with the projections of its cells' positions computed once.

    What concerns the tokens runs for K targets together; what concerns the cells runs target by target, in memory that stays in the cache.
    """

    def __init__(self, decoder: PixelDecoder, scale: int, side: int, chunk_size: int):
        self.side, self.dense = side, decoder.no_mask_embed
        self.upsample, self.transformer = decoder.feature_upsampling[scale], decoder.transformers[scale]
        self.level_embed = decoder.level_embed[scale]
        self.learned_tokens = torch.cat((decoder.iou_token, decoder.mask_tokens)) + self.level_embed
        self.hypernetwork = decoder.hypernetwork
        convolution, self.mask_norm, self.mask_activation = decoder.mask_upsampling
        # A transposed convolution of stride 2 and kernel 2: each cell makes its own 2 x 2 pixels, so it is one product.
        self.mask_weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        self.mask_bias = convolution.bias.repeat(4)
        self.num_heads = self.transformer.final_attn_token_to_image.num_heads
        # Keys and queries of the positions alone, biases included: (H, d, G). The first block's also hold the dense prompt.
        position = decoder.positions[scale](side).to(self.dense.dtype)
        self.keys, self.queries = [], []
        for block in self.transformer.layers:
            constant = position + self.dense if block.is_first else position
            self.keys.append(self._project(block.cross_attn_token_to_image.k_proj, constant))
            self.queries.append(self._project(block.cross_attn_image_to_token.q_proj, constant))
        self.keys.append(self._project(self.transformer.final_attn_token_to_image.k_proj, position))
        # New memory of this size costs more in page faults than in arithmetic (11 ms of 25 for a target), so it is kept.
        self.cells = position.new_empty(chunk_size, *position.shape)

    def prepare(self, grid: Tensor) -> ScaleFeatures:
        """(1, C, p, p) features of the neck -> what the photo keeps at this scale."""
        cells = self.upsample(grid)[0].flatten(1).t().contiguous()
        reading, writing = self.transformer.layers[0].cross_attn_token_to_image, self.transformer.layers[0].cross_attn_image_to_token
        return ScaleFeatures(cells, *(self._project(projection, cells, with_bias=False)
                                      for projection in (reading.k_proj, reading.v_proj, writing.q_proj)))

    def decode(self, photo: ScaleFeatures, factor: Tensor | None, prompt: Tensor) -> Tensor:
        """`factor` (K, G) multiplies the photo's cells, None for ones; prompt (K, C) -> logits (K, 2g, 2g)."""
        prompt = torch.cat((self.learned_tokens.expand(len(prompt), -1, -1), (prompt + self.level_embed).unsqueeze(1)), 1)
        tokens = prompt
        cells = self.cells[:len(prompt)]
        for block, key, query in zip(self.transformer.layers, self.keys[:-1], self.queries, strict=True):
            if block.is_first:
                tokens = block.norm1(block.self_attn(tokens, tokens, tokens))
                tokens = block.norm2(tokens + self._read_photo(block.cross_attn_token_to_image, tokens + prompt, photo, factor, key))
            else:
                with_position = tokens + prompt
                tokens = block.norm1(tokens + block.self_attn(with_position, with_position, tokens))
                tokens = block.norm2(tokens + self._read_cells(block.cross_attn_token_to_image, tokens + prompt, cells, key))
            tokens = block.norm3(tokens + block.lin2(F.relu(block.lin1(tokens))))
            self._write_cells(block, tokens, tokens + prompt, cells, query, photo, factor)
        tokens = tokens + self._read_cells(self.transformer.final_attn_token_to_image, tokens + prompt, cells, self.keys[-1])
        mask_tokens = self.hypernetwork(self.transformer.norm_final_attn(tokens)[:, 1])
        return torch.stack([self._mask_logits(token, grid) for token, grid in zip(mask_tokens, cells, strict=True)])

    def _read_photo(self, attention: Attention, tokens: Tensor, photo: ScaleFeatures, factor: Tensor | None, key: Tensor) -> Tensor:
        """Tokens (K, T, C) attend to cells `factor * photo + dense`, whose projections are there already -> (K, T, C)."""
        values = []
        for k, query in enumerate(self._heads(attention.q_proj(tokens))):
            weights = self._photo_scores(query, photo.key, None if factor is None else factor[k], key).softmax(-1)
            values.append(torch.bmm(weights if factor is None else weights * factor[k], photo.value.transpose(1, 2)))
        return attention.out_proj(torch.stack(values).transpose(1, 2).flatten(2) + attention.v_proj(self.dense))

    def _read_cells(self, attention: Attention, tokens: Tensor, cells: Tensor, key: Tensor) -> Tensor:
        """Tokens (K, T, C) attend to cells (K, G, C): the cells are averaged first and projected then, T H rows instead of G."""
        queries = self._heads(attention.q_proj(tokens))
        folded = (queries @ attention.k_proj.weight.unflatten(0, (self.num_heads, -1))).flatten(1, 2)
        read = []
        for query, rows, grid in zip(queries, folded, cells, strict=True):
            weights = linear(rows, grid, plus=torch.bmm(query, key).flatten(0, 1)).softmax(-1)
            read.append(linear(weights, grid.t()))
        values = torch.stack(read).unflatten(1, (self.num_heads, -1)) @ attention.v_proj.weight.unflatten(0, (self.num_heads, -1)).mT
        return attention.out_proj(values.transpose(1, 2).flatten(2) + attention.v_proj.bias)

    def _write_cells(self, block: TwoWayBlock, tokens: Tensor, with_position: Tensor, cells: Tensor, query: Tensor,
                     photo: ScaleFeatures, factor: Tensor | None) -> None:
        """Cells attend to tokens (K, T, C); the new cells, added to and normed, replace `cells` (K, G, C).

        The values go through the output projection first. A cell's weights over the tokens of a head sum to 1, so what is the same for
        all cells (the bias, the dense prompt) goes into the values, a share in each head.
        """
        attention = block.cross_attn_image_to_token
        keys = self._heads(attention.k_proj(with_position))
        folded = (keys @ attention.q_proj.weight.unflatten(0, (self.num_heads, -1))).flatten(1, 2)
        constant = attention.out_proj.bias + self.dense if block.is_first else attention.out_proj.bias
        values = attention.v_proj(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        values = values @ attention.out_proj.weight.t().unflatten(0, (self.num_heads, -1)) + constant / self.num_heads
        for k, (key, rows, value, grid) in enumerate(zip(keys, folded, values.flatten(1, 2), cells, strict=True)):
            if block.is_first:
                scores = self._photo_scores(key, photo.query, None if factor is None else factor[k], query)
                old = photo.cells if factor is None else photo.cells * factor[k].unsqueeze(1)
            else:
                scores = linear(rows, grid, plus=torch.bmm(key, query).flatten(0, 1)).unflatten(0, (self.num_heads, -1))
                old = grid
            weights = scores.softmax(1).flatten(0, 1)
            grid.copy_(block.norm4(linear(weights.t(), value.t(), plus=old)))

    def _mask_logits(self, mask_token: Tensor, cells: Tensor) -> Tensor:
        """mask_token (mask channels,), cells (G, C) -> logits (2g, 2g)."""
        pixels = linear(cells, self.mask_weight, self.mask_bias).view(-1, len(mask_token))
        norm = self.mask_norm
        pixels = self.mask_activation(F.layer_norm(pixels, pixels.shape[-1:], norm.weight, norm.bias, norm.eps))
        return (pixels @ mask_token).view(self.side, self.side, 2, 2).transpose(1, 2).reshape(2 * self.side, 2 * self.side)

    def _project(self, projection: nn.Linear, cells: Tensor, with_bias: bool = True) -> Tensor:
        """cells (G, C) -> (H, d, G)."""
        projected = linear(cells, projection.weight, projection.bias if with_bias else None)
        return projected.t().unflatten(0, (self.num_heads, -1)).contiguous()

    def _heads(self, tokens: Tensor) -> Tensor:
        """Projected tokens (K, T, H d) -> (K, H, T, d), times d^-0.5 of the attention's scores."""
        heads = tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads * heads.shape[-1] ** -0.5

    @staticmethod
    def _photo_scores(tokens: Tensor, photo: Tensor, factor: Tensor | None, constant: Tensor) -> Tensor:
        """Heads of tokens (H, T, d) against cells `factor * photo + constant`, both projected, (H, d, G) -> (H, T, G)."""
        scores = torch.bmm(tokens, photo)
        return torch.baddbmm(scores if factor is None else scores * factor, tokens, constant)


def _resize(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(K, h, w) -> (K, *size_hw), bilinear."""
    return F.interpolate(logits.unsqueeze(1), size_hw, mode="bilinear", align_corners=False).squeeze(1)
