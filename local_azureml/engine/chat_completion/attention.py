"""Attention for a batch whose rows lie end to end, so that no token of it is padding."""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

WITHIN_ROWS = "within_rows"  # the name under which transformers finds it


def attend_within_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    row_lengths: list[int],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Return what each token sees of those before it in its row; states are 1 by heads by tokens by width."""
    parts = zip(*(states.split(row_lengths, 2) for states in (query, key, value)), strict=True)
    seen = [
        scaled_dot_product_attention(
            *part,
            attn_mask=band(length, sliding_window, query.device),
            is_causal=not _slides(length, sliding_window),
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=module.num_key_value_groups > 1,
        )
        for part, length in zip(parts, row_lengths, strict=True)
    ]
    return torch.cat(seen, 2).transpose(1, 2).contiguous(), None


def band(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which tokens see which where a row is longer than the model's sliding window, else None."""
    if not _slides(length, window):
        return None
    place = torch.arange(length, device=device)
    back = place[:, None] - place
    return (back >= 0) & (back < window)


def _slides(length: int, window: int | None) -> bool:
    return window is not None and length > window


AttentionInterface.register(WITHIN_ROWS, attend_within_rows)
