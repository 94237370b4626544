"""Attention for a batch whose rows lie end to end, so that no token of it is padding."""

import sys

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

WITHIN_ROWS = "within_rows"  # the name under which transformers finds it
NOT_IN_TORCH = ("softcap", "s_aux")  # arguments that Gemma 2 and GPT-OSS give, and PyTorch's attention lacks


def attend_within_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    row_lengths: list[int],
    sliding_window: int | None = None,
    **how,
) -> tuple[torch.Tensor, None]:
    """Return what each token sees of those before it in its row, 1 by tokens by heads by width.

    The states are 1 by heads by tokens by width.
    """
    eager = any(how.get(name) is not None for name in NOT_IN_TORCH)
    attend = attend_eagerly if eager else attend_fused
    rows = zip(*(states.split(row_lengths, 2) for states in (query, key, value)), strict=True)
    return torch.cat([attend(module, *row, sliding_window, **how) for row in rows], 1), None


def attend_fused(module, query, key, value, window, dropout=0.0, scaling=None, **how) -> torch.Tensor:
    """Return what one row's tokens see, by PyTorch's own attention."""
    length = query.shape[2]
    slides = window is not None and length > window
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=band(length, window, query.device) if slides else None,
        is_causal=not slides,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    ).transpose(1, 2)


def attend_eagerly(module, query, key, value, window, **how) -> torch.Tensor:
    """Return what one row's tokens see, by the attention that stands in the model's own file."""
    length = query.shape[2]
    seen = band(length, window or length, query.device)
    mask = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
    own = sys.modules[type(module).__module__].eager_attention_forward
    return own(module, query, key, value, mask[None, None], **how)[0]


def band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which of a row's tokens see which: those before them, as far back as the window goes."""
    place = torch.arange(length, device=device)
    back = place[:, None] - place
    return (back >= 0) & (back < window)


AttentionInterface.register(WITHIN_ROWS, attend_within_rows)
