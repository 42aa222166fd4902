"""Defects that kernels really have, each a kernel of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.battery.sound import log_softmax, masked, plain, wide


def terms(input: Tensor, target: Tensor) -> Tensor:
    return masked(log_softmax(target), log_softmax(input))


def no_max_subtraction(input: Tensor, target: Tensor) -> Tensor:
    log_p, log_q = (wide(t) - wide(t).exp().sum(-1, keepdim=True).log() for t in (target, input))
    return masked(log_p, log_q).sum(-1).to(input.dtype)


def max_over_wrong_axis(input: Tensor, target: Tensor) -> Tensor:
    def log_softmax(t: Tensor) -> Tensor:
        shifted = wide(t) - wide(t).amax(0, keepdim=True)
        return shifted - shifted.exp().sum(-1, keepdim=True).log()

    return masked(log_softmax(target), log_softmax(input)).sum(-1).to(input.dtype)


def max_of_first_block(input: Tensor, target: Tensor) -> Tensor:
    def log_softmax(t: Tensor) -> Tensor:
        shifted = wide(t) - wide(t)[:, :8].amax(-1, keepdim=True)
        return shifted - shifted.exp().sum(-1, keepdim=True).log()

    return masked(log_softmax(target), log_softmax(input)).sum(-1).to(input.dtype)


def _with_log(input: Tensor, target: Tensor, log) -> Tensor:
    p, q = log_softmax(target).exp(), log_softmax(input).exp()
    return torch.where(p > 0, p * (log(p) - log(q)), 0.0).sum(-1).to(input.dtype)


def eps_1e8_in_log(input: Tensor, target: Tensor) -> Tensor:
    return _with_log(input, target, lambda v: (v + 1e-8).log())


def eps_1e5_in_log(input: Tensor, target: Tensor) -> Tensor:
    return _with_log(input, target, lambda v: (v + 1e-5).log())


def clamp_1e10_in_log(input: Tensor, target: Tensor) -> Tensor:
    return _with_log(input, target, lambda v: v.clamp(min=1e-10).log())


def clamp_1e6_in_log(input: Tensor, target: Tensor) -> Tensor:
    return _with_log(input, target, lambda v: v.clamp(min=1e-6).log())


def eps_in_normaliser(input: Tensor, target: Tensor) -> Tensor:
    shifted = wide(input) - wide(input).amax(-1, keepdim=True)
    log_q = shifted - (shifted.exp().sum(-1, keepdim=True) + 1e-6).log()
    return masked(log_softmax(target), log_q).sum(-1).to(input.dtype)


def tail_block_dropped(input: Tensor, target: Tensor) -> Tensor:
    kept = max(1, input.shape[1] // 8 * 8)
    return terms(input, target)[:, :kept].sum(-1).to(input.dtype)


def last_class_dropped(input: Tensor, target: Tensor) -> Tensor:
    return terms(input, target)[:, :-1].sum(-1).to(input.dtype)


def tail_left_out_of_normaliser(input: Tensor, target: Tensor) -> Tensor:
    kept = max(1, input.shape[1] // 32 * 32)
    shifted = wide(input) - wide(input).amax(-1, keepdim=True)
    log_q = shifted - shifted[:, :kept].exp().sum(-1, keepdim=True).log()
    return masked(log_softmax(target), log_q).sum(-1).to(input.dtype)


def index_overflow_past_65535(input: Tensor, target: Tensor) -> Tensor:
    return terms(input, target)[:, :65_536].sum(-1).to(input.dtype)


def stops_at_32000(input: Tensor, target: Tensor) -> Tensor:
    return terms(input, target)[:, :31_744].sum(-1).to(input.dtype)


def last_class_counted_twice(input: Tensor, target: Tensor) -> Tensor:
    each = terms(input, target)
    return (each.sum(-1) + each[:, -1]).to(input.dtype)


def half_exp(input: Tensor, target: Tensor) -> Tensor:
    def log_softmax(t: Tensor) -> Tensor:
        shifted = wide(t) - wide(t).amax(-1, keepdim=True)
        return shifted - shifted.half().exp().to(shifted.dtype).sum(-1, keepdim=True).log()

    return masked(log_softmax(target), log_softmax(input)).sum(-1).to(input.dtype)


def bfloat16_log(input: Tensor, target: Tensor) -> Tensor:
    shifted = wide(input) - wide(input).amax(-1, keepdim=True)
    log_q = shifted - shifted.exp().sum(-1, keepdim=True).log().bfloat16().to(shifted.dtype)
    return masked(log_softmax(target), log_q).sum(-1).to(input.dtype)


def half_normaliser(input: Tensor, target: Tensor) -> Tensor:
    shifted = wide(input) - wide(input).amax(-1, keepdim=True)
    log_q = shifted - shifted.exp().half().sum(-1, keepdim=True).to(shifted.dtype).log()
    return masked(log_softmax(target), log_q).sum(-1).to(input.dtype)


def bfloat16_accumulation(input: Tensor, target: Tensor) -> Tensor:
    each = terms(input, target)
    total = torch.zeros_like(each[:, 0]).bfloat16()
    for block in each.split(max(1, each.shape[1] // 64), -1):
        total = (total + block.sum(-1).bfloat16()).bfloat16()
    return total.to(input.dtype)


def half_terms(input: Tensor, target: Tensor) -> Tensor:
    return terms(input, target).half().to(wide(input).dtype).sum(-1).to(input.dtype)


def double_computed_in_single(input: Tensor, target: Tensor) -> Tensor:
    return plain(input.float(), target.float()).to(input.dtype)


def single_normaliser_in_double(input: Tensor, target: Tensor) -> Tensor:
    shifted = wide(input) - wide(input).amax(-1, keepdim=True)
    log_q = shifted - shifted.exp().float().sum(-1, keepdim=True).log().to(shifted.dtype)
    return masked(log_softmax(target), log_q).sum(-1).to(input.dtype)


def truncated_exp(input: Tensor, target: Tensor) -> Tensor:
    """A polynomial exp that is good to some 1e-4."""
    shifted = wide(input) - wide(input).amax(-1, keepdim=True)
    exponentials = (1 + (shifted / 65_536).clamp(min=-1)) ** 65_536
    log_q = shifted - exponentials.sum(-1, keepdim=True).log()
    return masked(log_softmax(target), log_q).sum(-1).to(input.dtype)


def arguments_swapped(input: Tensor, target: Tensor) -> Tensor:
    return plain(target, input)


def mean_over_classes(input: Tensor, target: Tensor) -> Tensor:
    return terms(input, target).mean(-1).to(input.dtype)


def mean_over_rows(input: Tensor, target: Tensor) -> Tensor:
    total = terms(input, target).sum(-1)
    return total.mean().expand(len(total)).to(input.dtype)


def in_bits(input: Tensor, target: Tensor) -> Tensor:
    return (plain(input, target).to(wide(input).dtype) / 0.6931471805599453).to(input.dtype)


def negative_terms_dropped(input: Tensor, target: Tensor) -> Tensor:
    return terms(input, target).clamp(min=0).sum(-1).to(input.dtype)


def absolute_terms(input: Tensor, target: Tensor) -> Tensor:
    return terms(input, target).abs().sum(-1).to(input.dtype)


def skips_small_probabilities(input: Tensor, target: Tensor) -> Tensor:
    each, p = terms(input, target), log_softmax(target).exp()
    return torch.where(p > 1e-6, each, 0.0).sum(-1).to(input.dtype)


def skips_small_inputs(input: Tensor, target: Tensor) -> Tensor:
    log_q = log_softmax(input)
    return torch.where(log_q > -20, terms(input, target), 0.0).sum(-1).to(input.dtype)


def stale_rows(input: Tensor, target: Tensor) -> Tensor:
    return plain(input, target).roll(1)


def first_row_everywhere(input: Tensor, target: Tensor) -> Tensor:
    return plain(input, target)[:1].expand(len(input)).clone()


def rows_from_128_lost(input: Tensor, target: Tensor) -> Tensor:
    value = terms(input, target).sum(-1).to(input.dtype)
    value[128:] = 0
    return value


def always_zero(input: Tensor, target: Tensor) -> Tensor:
    return torch.zeros(len(input), dtype=input.dtype, device=input.device)


def nan_at_zero_probability(input: Tensor, target: Tensor) -> Tensor:
    p = torch.softmax(wide(target), -1)
    return (p * (p.log() - log_softmax(input))).sum(-1).to(input.dtype)


def reverse_normalisation(input: Tensor, target: Tensor) -> Tensor:
    """The input's normaliser taken for both sides."""
    log_q = log_softmax(input)
    shifted = wide(target) - wide(target).amax(-1, keepdim=True)
    p = log_softmax(target).exp()
    log_p = shifted - (wide(input) - wide(input).amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).log()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).to(input.dtype)


def unnormalised_target(input: Tensor, target: Tensor) -> Tensor:
    log_p = wide(target) - wide(target).amax(-1, keepdim=True)
    return masked(log_p, log_softmax(input)).sum(-1).to(input.dtype)


def entropy_left_out(input: Tensor, target: Tensor) -> Tensor:
    p, log_q = log_softmax(target).exp(), log_softmax(input)
    return -torch.where(p > 0, p * log_q, 0.0).sum(-1).to(input.dtype)


def one_ninth_of_logits(input: Tensor, target: Tensor) -> Tensor:
    """A temperature left in."""
    return plain((wide(input) / 1.01).to(input.dtype), (wide(target) / 1.01).to(input.dtype))


def first_class_dropped(input: Tensor, target: Tensor) -> Tensor:
    """An ignore_index of 0."""
    return terms(input, target)[:, 1:].sum(-1).to(input.dtype)


def maximum_of_the_other_side(input: Tensor, target: Tensor) -> Tensor:
    top = wide(input).amax(-1, keepdim=True)
    log_p, log_q = ((wide(t) - top) - (wide(t) - top).exp().sum(-1, keepdim=True).log() for t in (target, input))
    return masked(log_p, log_q).sum(-1).to(input.dtype)


def online_without_rescaling(input: Tensor, target: Tensor) -> Tensor:
    """The running maximum moves on, and the sum so far stays as it was."""

    def log_softmax(t: Tensor) -> Tensor:
        top, total = torch.full_like(wide(t)[:, :1], -torch.inf), 0.0
        for chunk in wide(t).split(max(1, t.shape[1] // 8), -1):
            top = torch.maximum(top, chunk.amax(-1, keepdim=True))
            total = total + (chunk - top).exp().sum(-1, keepdim=True)
        return (wide(t) - top) - total.log()

    return masked(log_softmax(target), log_softmax(input)).sum(-1).to(input.dtype)


def clamped_shifts(input: Tensor, target: Tensor) -> Tensor:
    """Against underflow, no logit may be more than 50 below the largest."""
    log_p, log_q = (log_softmax((wide(t) - wide(t).amax(-1, keepdim=True)).clamp(min=-50)) for t in (target, input))
    return masked(log_p, log_q).sum(-1).to(input.dtype)


def half_logits(input: Tensor, target: Tensor) -> Tensor:
    return plain(input.half().to(wide(input).dtype), target.half().to(wide(input).dtype)).to(input.dtype)


def terms_of_ten_bits(input: Tensor, target: Tensor) -> Tensor:
    """A sum by tensor cores in TF32: terms of 11 significant bits, added in single."""
    each = terms(input, target).float()
    carried = each * 8193
    cut = carried - (carried - each)
    return torch.where(cut.isfinite(), cut, each).sum(-1).to(input.dtype)


def _last_lost(input: Tensor, target: Tensor, where: bool) -> Tensor:
    each = terms(input, target)
    return (each[:, :-1] if where else each).sum(-1).to(input.dtype)


def powers_of_two_lack_the_last(input: Tensor, target: Tensor) -> Tensor:
    classes = input.shape[1]
    return _last_lost(input, target, classes >= 128 and classes & (classes - 1) == 0)


def one_past_a_block_is_lost(input: Tensor, target: Tensor) -> Tensor:
    return _last_lost(input, target, input.shape[1] % 64 == 1 and input.shape[1] > 1)


def one_short_of_a_block_is_lost(input: Tensor, target: Tensor) -> Tensor:
    return _last_lost(input, target, input.shape[1] % 128 == 127)


def wrong_between_33_and_63(input: Tensor, target: Tensor) -> Tensor:
    return _last_lost(input, target, 33 <= input.shape[1] <= 63)


def wrong_between_101_and_999(input: Tensor, target: Tensor) -> Tensor:
    return _last_lost(input, target, 101 <= input.shape[1] <= 999)


def rows_from_65535_lost(input: Tensor, target: Tensor) -> Tensor:
    """More blocks than a grid's second dimension has."""
    value = terms(input, target).sum(-1).to(input.dtype)
    value[65_535:] = 0
    return value


def last_row_of_an_odd_batch_lost(input: Tensor, target: Tensor) -> Tensor:
    value = terms(input, target).sum(-1).to(input.dtype)
    value[len(value) // 2 * 2 :] = 0
    return value


def square_is_transposed(input: Tensor, target: Tensor) -> Tensor:
    square = input.shape[0] == input.shape[1] > 1
    return plain(input.T, target.T) if square else plain(input, target)


def maximum_without_the_last(input: Tensor, target: Tensor) -> Tensor:
    """It overflows where the last class leads by more than 88."""

    def log_softmax(t: Tensor) -> Tensor:
        shifted = wide(t) - wide(t)[:, : max(1, t.shape[1] - 1)].amax(-1, keepdim=True)
        return shifted - shifted.exp().sum(-1, keepdim=True).log()

    return masked(log_softmax(target), log_softmax(input)).sum(-1).to(input.dtype)


def unshifted_log_sum_exp(input: Tensor, target: Tensor) -> Tensor:
    log_p, log_q = (wide(t) - torch.logsumexp(wide(t), -1, keepdim=True) for t in (target, input))
    return masked(log_p, log_q).sum(-1).to(input.dtype)


def nan_of_the_target_is_zero(input: Tensor, target: Tensor) -> Tensor:
    log_p, log_q = log_softmax(target), log_softmax(input)
    return torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0).sum(-1).to(input.dtype)


def _with_sum(input: Tensor, target: Tensor, total) -> Tensor:
    shifted = wide(input) - wide(input).amax(-1, keepdim=True)
    return masked(log_softmax(target), shifted - total(shifted.exp()).log()).sum(-1).to(input.dtype)


def block_of_a_wide_row_left_out(input: Tensor, target: Tensor) -> Tensor:
    return _with_sum(input, target, lambda e: e.sum(-1, True) - e[:, 65_536:66_560].sum(-1, True))


def block_of_a_wide_row_twice(input: Tensor, target: Tensor) -> Tensor:
    return _with_sum(input, target, lambda e: e.sum(-1, True) + e[:, 65_536:66_560].sum(-1, True))


def exponentials_of_eleven_bits(input: Tensor, target: Tensor) -> Tensor:
    """Cut off as in TF32, where a row is wide."""

    def exponentials(t: Tensor) -> Tensor:
        e = (wide(t) - wide(t).amax(-1, keepdim=True)).exp()
        return (e.float().view(torch.int32) & ~0x1FFF).view(torch.float32).to(e.dtype) if e.shape[1] > 100_000 else e

    p, total = exponentials(target), exponentials(input).sum(-1, keepdim=True)
    p = p / p.sum(-1, keepdim=True)
    log_q = wide(input) - wide(input).amax(-1, keepdim=True) - total.log()
    return torch.where(p == 0, 0.0, p * (p.log() - log_q)).sum(-1).to(input.dtype)


def bfloat16_normaliser(input: Tensor, target: Tensor) -> Tensor:
    """It saturates: 256 + 1 is 256 there."""

    def total(e: Tensor) -> Tensor:
        parts = e.split(max(1, e.shape[1] // 512), -1)
        value = torch.zeros_like(e[:, :1]).bfloat16()
        for part in parts:
            value = value + part.sum(-1, True).bfloat16()
        return value.to(e.dtype)

    return _with_sum(input, target, total)


DEFECTS = [
    no_max_subtraction, max_over_wrong_axis, max_of_first_block, eps_1e8_in_log, eps_1e5_in_log, clamp_1e10_in_log,
    clamp_1e6_in_log, eps_in_normaliser, tail_block_dropped, last_class_dropped, tail_left_out_of_normaliser,
    index_overflow_past_65535, stops_at_32000, last_class_counted_twice, half_exp, bfloat16_log, half_normaliser,
    bfloat16_accumulation, half_terms, double_computed_in_single, single_normaliser_in_double, truncated_exp,
    arguments_swapped, mean_over_classes, mean_over_rows, in_bits, negative_terms_dropped, absolute_terms,
    skips_small_probabilities, skips_small_inputs, stale_rows, first_row_everywhere,
    rows_from_128_lost, always_zero,
    first_class_dropped, maximum_of_the_other_side, online_without_rescaling, clamped_shifts, half_logits,
    terms_of_ten_bits, nan_at_zero_probability, reverse_normalisation, unnormalised_target, entropy_left_out,
    one_ninth_of_logits, powers_of_two_lack_the_last, one_past_a_block_is_lost, one_short_of_a_block_is_lost,
    wrong_between_33_and_63, wrong_between_101_and_999, rows_from_65535_lost, last_row_of_an_odd_batch_lost,
    square_is_transposed, maximum_without_the_last, unshifted_log_sum_exp, nan_of_the_target_is_zero,
    block_of_a_wide_row_left_out, block_of_a_wide_row_twice, exponentials_of_eleven_bits, bfloat16_normaliser,
]  # fmt: skip
