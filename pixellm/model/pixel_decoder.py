"""The pixel decoder: per scale a two-way transformer turns one prompt and one grid of photo features into mask logits.

Letters: K targets, L scales, C decoder width, g x g grid of a scale, G its g*g cells, 2g x 2g its mask, M x M the combined mask.
The blocks follow the mask decoder of Segment Anything (arXiv 2304.02643, appendix A) as PixelLM uses it (section 3.2 there).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, grid: Tensor) -> Tensor:
        channels_last = F.layer_norm(grid.permute(0, 2, 3, 1), (grid.shape[1],), self.weight, self.bias, self.eps)
        return channels_last.permute(0, 3, 1, 2)


class FourierPosition(nn.Module):
    """Random Fourier features of the cell centres of a grid. The matrix is drawn once and saved with the weights."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, hidden_size // 2))

    def forward(self, side: int) -> Tensor:
        """Returns (side*side, C), row-major cells."""
        centre = (torch.arange(side, device=self.frequencies.device, dtype=torch.float32) + 0.5) / side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        angle = 2 * math.pi * ((2 * torch.stack((x, y), -1) - 1) @ self.frequencies.float())
        return torch.cat((angle.sin(), angle.cos()), -1).flatten(0, 1).to(self.frequencies.dtype)


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than C."""

    def __init__(self, hidden_size: int, num_heads: int, inner_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, inner_size)
        self.k_proj = nn.Linear(hidden_size, inner_size)
        self.v_proj = nn.Linear(hidden_size, inner_size)
        self.out_proj = nn.Linear(inner_size, hidden_size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (self._heads(proj(x)) for proj, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value)))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the grid, pass an MLP, and the grid attends back to them."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, is_first: bool):
        super().__init__()
        self.is_first = is_first  # the first block's self-attention has neither position nor residual
        self.self_attn = Attention(hidden_size, num_heads, hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.cross_attn_token_to_image = Attention(hidden_size, num_heads, hidden_size // 2)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.lin1 = nn.Linear(hidden_size, mlp_size)
        self.lin2 = nn.Linear(mlp_size, hidden_size)
        self.norm3 = nn.LayerNorm(hidden_size)
        self.cross_attn_image_to_token = Attention(hidden_size, num_heads, hidden_size // 2)
        self.norm4 = nn.LayerNorm(hidden_size)

    def forward(self, tokens: Tensor, grid: Tensor, token_position: Tensor, grid_position: Tensor) -> tuple[Tensor, Tensor]:
        """tokens, token_position (K, T, C); grid (K, G, C); grid_position (G, C). Returns the new tokens and grid."""
        if self.is_first:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            query = tokens + token_position
            tokens = self.norm1(tokens + self.self_attn(query, query, tokens))
        key = grid + grid_position
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_position, key, grid))
        tokens = self.norm3(tokens + self.lin2(F.relu(self.lin1(tokens))))
        grid = self.norm4(grid + self.cross_attn_image_to_token(key, tokens + token_position, tokens))
        return tokens, grid


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a last look of the tokens at the grid."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(hidden_size, num_heads, mlp_size, is_first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(hidden_size, num_heads, hidden_size // 2)
        self.norm_final_attn = nn.LayerNorm(hidden_size)

    def forward(self, prompt: Tensor, grid: Tensor, grid_position: Tensor) -> tuple[Tensor, Tensor]:
        """prompt (K, T, C) is also the tokens' position; grid (K, G, C). Returns tokens (K, T, C), grid (K, G, C)."""
        tokens = prompt
        for layer in self.layers:
            tokens, grid = layer(tokens, grid, prompt, grid_position)
        attended = self.final_attn_token_to_image(tokens + prompt, grid + grid_position, grid)
        return self.norm_final_attn(tokens + attended), grid


class PixelDecoder(nn.Module):
    """Decodes K prompts against the features of their photos, from the deepest scale to the earliest."""

    NUM_MASK_TOKENS = 4  # the first one makes the mask; all take part in the self-attention

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, depth: int, mask_channels: int, scale_upsampling: list[int]):
        super().__init__()
        num_scales = len(scale_upsampling)
        self.scale_upsampling = scale_upsampling
        self.iou_token = nn.Parameter(torch.empty(1, hidden_size))
        self.mask_tokens = nn.Parameter(torch.empty(self.NUM_MASK_TOKENS, hidden_size))
        self.level_embed = nn.Parameter(torch.empty(num_scales, hidden_size))
        self.no_mask_embed = nn.Parameter(torch.empty(hidden_size))
        self.gamma = nn.Parameter(torch.empty(num_scales))
        self.positions = nn.ModuleList(FourierPosition(hidden_size) for _ in range(num_scales))
        self.transformers = nn.ModuleList(TwoWayTransformer(hidden_size, num_heads, mlp_size, depth) for _ in range(num_scales))
        self.feature_upsampling = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(hidden_size, hidden_size, 2, 2), LayerNorm2d(hidden_size), nn.GELU())
            if factor == 2 else nn.Identity() for factor in scale_upsampling)
        self.mask_upsampling = nn.Sequential(nn.ConvTranspose2d(hidden_size, mask_channels, 2, 2), LayerNorm2d(mask_channels), nn.GELU())
        self.hypernetwork = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU(),
            nn.Linear(hidden_size, mask_channels))

    def scale_weights(self) -> Tensor:
        """(L,) gamma of the paper, normalised so that sum |gamma| = 1."""
        return self.gamma / self.gamma.abs().sum()

    def forward(self, features: list[Tensor], photo_of_target: Tensor, prompts: Tensor, mask_size: int) -> tuple[Tensor, list[Tensor]]:
        """Mask logits of K targets.

        features: L tensors (B, C, g, g), deepest first, before upsampling. photo_of_target: (K,) int64 in [0, B).
        prompts: (K, L, C). Returns the combined logits (K, M, M) and the L scales' own logits (K, 2g, 2g).
        """
        scales: list[Tensor] = []
        for scale, upsample in enumerate(self.feature_upsampling):
            grid = upsample(features[scale])[photo_of_target]
            side = grid.shape[-1]
            if scales:  # eq. 4: f^l' = f^l * (sigmoid(m^{l+1}) + 1)
                previous = F.interpolate(scales[-1].unsqueeze(1), (side, side), mode="bilinear", align_corners=False)
                grid = grid * (previous.sigmoid() + 1)
            grid = (grid + self.no_mask_embed[:, None, None]).flatten(2).transpose(1, 2)
            scales.append(self._decode(scale, grid, prompts[:, scale], side))
        combined = torch.zeros((), dtype=prompts.dtype, device=prompts.device)
        for weight, logits in zip(self.scale_weights(), scales, strict=True):
            combined = combined + weight * F.interpolate(logits.unsqueeze(1), (mask_size, mask_size), mode="bilinear", align_corners=False)
        return combined.squeeze(1), scales

    def _decode(self, scale: int, grid: Tensor, prompt: Tensor, side: int) -> Tensor:
        """grid (K, G, C), prompt (K, C) -> logits (K, 2 side, 2 side)."""
        learned = torch.cat((self.iou_token, self.mask_tokens)).expand(len(prompt), -1, -1)
        tokens = torch.cat((learned, prompt.unsqueeze(1)), 1) + self.level_embed[scale]
        tokens, grid = self.transformers[scale](tokens, grid, self.positions[scale](side).to(grid.dtype))
        upscaled = self.mask_upsampling(grid.transpose(1, 2).unflatten(2, (side, side)))
        return torch.einsum("kc,kchw->khw", self.hypernetwork(tokens[:, 1]), upscaled)
