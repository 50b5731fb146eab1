"""The Triton kernels of pairwise log-sum-exp; what they are for, and why so, is with the launchers
in ``pairwise_lse.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _load_features(  # type: ignore[no-untyped-def]
    tower, row, stride, start, features, BLOCK_FEATURES: tl.constexpr, EVEN: tl.constexpr
):
    """Features [start, start + BLOCK_FEATURES) of some rows; 0 beyond the last."""
    feature = start + tl.arange(0, BLOCK_FEATURES)
    pointers = tower + row[:, None] * stride + feature[None, :]
    if EVEN:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=(feature < features)[None, :], other=0.0)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _products(  # type: ignore[no-untyped-def]
    held,
    query,
    tile_row,
    query_stride,
    key,
    tile_column,
    key_stride,
    features,
    PRECISION: tl.constexpr,
    HELD: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """Dot products of some rows of both towers: of all features at once where those of the query
    are held, else a few at a time.
    """
    if HELD:
        b = _load_features(key, tile_column, key_stride, 0, features, BLOCK_FEATURES, EVEN)
        product = tl.dot(held, tl.trans(b), input_precision=PRECISION)
    else:
        product = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        for start in range(0, features, BLOCK_FEATURES):
            a = _load_features(query, tile_row, query_stride, start, features, BLOCK_FEATURES, EVEN)
            b = _load_features(key, tile_column, key_stride, start, features, BLOCK_FEATURES, EVEN)
            product = tl.dot(a, tl.trans(b), product, input_precision=PRECISION)
    return product


@triton.jit  # type: ignore[untyped-decorator]
def _kinds(  # type: ignore[no-untyped-def]
    row,
    column,
    columns,
    row_label,
    column_labels,
    self_offset,
    LABELS: tl.constexpr,
    SELF: tl.constexpr,
):
    """Which pairs count at all, and which of them are positive (with labels)."""
    is_column = column < columns
    counted = is_column[None, :]
    positive = counted
    if SELF:
        counted = counted & (column[None, :] != (row + self_offset)[:, None])
    if LABELS:
        column_label = tl.load(column_labels + column, mask=is_column, other=0)
        counted = counted & (row_label >= 0)[:, None] & (column_label >= 0)[None, :]
        positive = counted & (row_label[:, None] == column_label[None, :])
    return counted, positive


@triton.jit
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x. The logits stay in nats up to here: only differences are turned to powers of two, for
    log2(e), rounded, would be off by more on a large logit itself.
    """
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _add(total, lost, more):  # type: ignore[no-untyped-def]
    """Kahan's sum: a row of many tiles loses no digits. Costs a few operations a row and tile."""
    more -= lost
    new = total + more
    return new, (new - total) - more


@triton.jit
def _raise(maximum, total, lost, most):  # type: ignore[no-untyped-def]
    """A running maximum and its sum of e^(s - maximum), for a maximum that is at least ``most``."""
    new = tl.maximum(maximum, most)
    finite = tl.where(new == float("-inf"), 0.0, new)  # a difference of infinities would be NaN
    shrink = _exp(maximum - finite)
    return new, finite, total * shrink, lost * shrink


@triton.jit
def _log_one_plus(e):  # type: ignore[no-untyped-def]
    """log(1 + e) for e in [0, 1], with all digits of a small e: 2 atanh(e / (2 + e)), a series."""
    z = e / (2.0 + e)
    square = z * z
    series = 1.0 / 15.0
    series = series * square + 1.0 / 13.0
    series = series * square + 1.0 / 11.0
    series = series * square + 1.0 / 9.0
    series = series * square + 1.0 / 7.0
    series = series * square + 1.0 / 5.0
    series = series * square + 1.0 / 3.0
    return 2.0 * z + 2.0 * z * square * series


@triton.jit  # type: ignore[untyped-decorator]
def _side_gradient(  # type: ignore[no-untyped-def]
    logits,
    positive,
    weights,
    stride,
    index,
    is_inside,
    KIND: tl.constexpr,
    LABELS: tl.constexpr,
    OWN: tl.constexpr,
):
    """What one side's incoming gradients make of the logits, which are -inf where no pair counts.

    The rows of ``weights`` hold the log-sum-exp of the negatives and what comes in for it, the same
    of the positives, and what comes in for each positive pair. Each is read where it is first used:
    read together, they would fill the registers.
    """
    gradient = tl.zeros_like(logits)
    if KIND > 0:
        # Finite, because the difference to a logit of -inf must not be NaN.
        lse = tl.maximum(tl.load(weights + index, mask=is_inside, other=0.0), -3e38)
        if KIND == 2:
            if OWN:  # the derivative of log sigmoid(s - n)
                x = logits - lse
                e = _exp(-tl.abs(x))
                gradient = tl.where(x < 0, 1.0, e) / (1.0 + e)
            else:
                gradient += 1.0
            linear = tl.load(weights + 4 * stride + index, mask=is_inside, other=0.0)
            gradient = tl.where(positive, gradient * linear, 0.0)
            of_positives = tl.load(weights + 2 * stride + index, mask=is_inside, other=0.0)
            lse = tl.where(positive, tl.maximum(of_positives, -3e38), lse)
        e = _exp(logits - lse)
        incoming = tl.load(weights + stride + index, mask=is_inside, other=0.0)
        if KIND == 2:
            of_positives = tl.load(weights + 3 * stride + index, mask=is_inside, other=0.0)
            gradient += e * tl.where(positive, of_positives, incoming)
        elif LABELS:
            gradient = tl.where(positive, 0.0, e * incoming)
        else:
            gradient = e * incoming
    return gradient


# ---------------------------------------------------------------------------------- kernels

# Sizes that change from batch to batch: no kernel is compiled anew where one happens to be 1
# or a multiple of 16. Strides and features are left to specialise, for they allow wide loads.
_CHANGING = ["rows", "columns", "self_offset", "split_columns"]


@triton.jit(do_not_specialize=_CHANGING)  # type: ignore[untyped-decorator]
def forward_kernel(
    query: tl.tensor,
    key: tl.tensor,
    scale: tl.tensor,
    query_labels: tl.tensor,
    key_labels: tl.tensor,
    negatives: tl.tensor,
    positives: tl.tensor,
    positive_sum: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    query_stride: int,
    key_stride: int,
    self_offset: int,
    split_columns: int,
    LABELS: tl.constexpr,
    SELF: tl.constexpr,
    POSITIVES: tl.constexpr,
    PRECISION: tl.constexpr,
    HELD: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
) -> None:
    first_row = tl.program_id(0) * BLOCK_ROWS
    split = tl.program_id(1)
    begin = split * split_columns
    end = tl.minimum(begin + split_columns, columns)

    row = first_row + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    # Only the offset of a tile can pass 2^31 elements. Within it 32 bits are enough, and take half
    # the registers. Rows past the end are the last one again: nothing is stored for them.
    tile_row = tl.minimum(tl.arange(0, BLOCK_ROWS), rows - 1 - first_row)
    query += first_row.to(tl.int64) * query_stride
    row_label = row
    if LABELS:
        row_label = tl.load(query_labels + row, mask=is_row, other=0)
    sigma = tl.load(scale)
    held = row
    if HELD:
        held = _load_features(query, tile_row, query_stride, 0, features, BLOCK_FEATURES, EVEN)

    most_negative = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    negative_total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    negative_lost = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    most_positive = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    positive_total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    positive_lost = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    logit_total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    logit_lost = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for first_column in range(begin, end, BLOCK_COLUMNS):
        column = first_column + tl.arange(0, BLOCK_COLUMNS)
        tile_column = tl.minimum(tl.arange(0, BLOCK_COLUMNS), columns - 1 - first_column)
        logits = sigma * _products(
            held, query, tile_row, query_stride,
            key + tl.cast(first_column, tl.int64) * key_stride, tile_column, key_stride,
            features, PRECISION, HELD, EVEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_FEATURES,
        )  # fmt: skip
        counted, positive = _kinds(
            row, column, columns, row_label, key_labels, self_offset, LABELS, SELF
        )
        negative = counted
        if LABELS:
            negative = counted & (positive == 0)
        most = tl.max(tl.where(negative, logits, float("-inf")), axis=1)
        most_negative, from_negative, negative_total, negative_lost = _raise(
            most_negative, negative_total, negative_lost, most
        )
        if POSITIVES:
            most = tl.max(tl.where(positive, logits, float("-inf")), axis=1)
            most_positive, from_positive, positive_total, positive_lost = _raise(
                most_positive, positive_total, positive_lost, most
            )
            # A pair is of one kind: one exponential serves both sums.
            e = _exp(logits - tl.where(positive, from_positive[:, None], from_negative[:, None]))
            positive_total, positive_lost = _add(
                positive_total, positive_lost, tl.sum(tl.where(positive, e, 0.0), axis=1)
            )
            logit_total, logit_lost = _add(
                logit_total, logit_lost, tl.sum(tl.where(positive, logits, 0.0), axis=1)
            )
        else:
            e = _exp(logits - from_negative[:, None])
        negative_total, negative_lost = _add(
            negative_total, negative_lost, tl.sum(tl.where(negative, e, 0.0), axis=1)
        )

    out = split.to(tl.int64) * rows + row
    tl.store(negatives + out, most_negative + tl.log(negative_total), mask=is_row)
    if POSITIVES:
        tl.store(positives + out, most_positive + tl.log(positive_total), mask=is_row)
        tl.store(positive_sum + out, logit_total, mask=is_row)


@triton.jit(do_not_specialize=_CHANGING)  # type: ignore[untyped-decorator]
def own_kernel(
    query: tl.tensor,
    key: tl.tensor,
    scale: tl.tensor,
    query_labels: tl.tensor,
    key_labels: tl.tensor,
    negatives: tl.tensor,
    positive_sum: tl.tensor,
    weight: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    query_stride: int,
    key_stride: int,
    self_offset: int,
    split_columns: int,
    SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    HELD: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
) -> None:
    first_row = tl.program_id(0) * BLOCK_ROWS
    split = tl.program_id(1)
    begin = split * split_columns
    end = tl.minimum(begin + split_columns, columns)

    row = first_row + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    tile_row = tl.minimum(tl.arange(0, BLOCK_ROWS), rows - 1 - first_row)
    query += first_row.to(tl.int64) * query_stride
    row_label = tl.load(query_labels + row, mask=is_row, other=0)
    row_negatives = tl.load(negatives + row, mask=is_row, other=0.0)
    sigma = tl.load(scale)
    held = row
    if HELD:
        held = _load_features(query, tile_row, query_stride, 0, features, BLOCK_FEATURES, EVEN)

    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    lost = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    weight_total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    weight_lost = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for first_column in range(begin, end, BLOCK_COLUMNS):
        column = first_column + tl.arange(0, BLOCK_COLUMNS)
        tile_column = tl.minimum(tl.arange(0, BLOCK_COLUMNS), columns - 1 - first_column)
        logits = sigma * _products(
            held, query, tile_row, query_stride,
            key + tl.cast(first_column, tl.int64) * key_stride, tile_column, key_stride,
            features, PRECISION, HELD, EVEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_FEATURES,
        )  # fmt: skip
        _, positive = _kinds(row, column, columns, row_label, key_labels, self_offset, True, SELF)
        # log sigmoid(x) = min(x, 0) - log(1 + e^-|x|): 0 for a row without negatives
        x = logits - row_negatives[:, None]
        e = _exp(-tl.abs(x))
        value = tl.minimum(x, 0.0) - _log_one_plus(e)
        total, lost = _add(total, lost, tl.sum(tl.where(positive, value, 0.0), axis=1))
        value = tl.where(x < 0, 1.0, e) / (1.0 + e)  # sigmoid(-x)
        weight_total, weight_lost = _add(
            weight_total, weight_lost, tl.sum(tl.where(positive, value, 0.0), axis=1)
        )

    out = split.to(tl.int64) * rows + row
    tl.store(positive_sum + out, total, mask=is_row)
    tl.store(weight + out, weight_total, mask=is_row)


@triton.jit(do_not_specialize=_CHANGING)  # type: ignore[untyped-decorator]
def held_gradient_kernel(
    query: tl.tensor,
    key: tl.tensor,
    scale: tl.tensor,
    lift: tl.tensor,
    query_labels: tl.tensor,
    key_labels: tl.tensor,
    row_weights: tl.tensor,
    column_weights: tl.tensor,
    gradient: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    gradient_features: int,
    query_stride: int,
    key_stride: int,
    self_offset: int,
    split_columns: int,
    LABELS: tl.constexpr,
    SELF: tl.constexpr,
    ROW_KIND: tl.constexpr,
    COLUMN_KIND: tl.constexpr,
    OWN: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
) -> None:
    first_row = tl.program_id(0) * BLOCK_ROWS
    split = tl.program_id(1)
    begin = split * split_columns
    end = tl.minimum(begin + split_columns, columns)

    row = first_row + tl.arange(0, BLOCK_ROWS)
    is_row = row < rows
    tile_row = tl.minimum(tl.arange(0, BLOCK_ROWS), rows - 1 - first_row)
    query += first_row.to(tl.int64) * query_stride
    row_label = row
    if LABELS:
        row_label = tl.load(query_labels + row, mask=is_row, other=0)
    sigma = tl.load(scale)
    factor = 1.0
    if lift is not None:
        factor = tl.load(lift)
    held = _load_features(query, tile_row, query_stride, 0, features, BLOCK_FEATURES, EVEN)

    product = tl.zeros((BLOCK_ROWS, BLOCK_FEATURES), dtype=tl.float32)
    for first_column in range(begin, end, BLOCK_COLUMNS):
        column = first_column + tl.arange(0, BLOCK_COLUMNS)
        tile_column = tl.minimum(tl.arange(0, BLOCK_COLUMNS), columns - 1 - first_column)
        tile_key = key + tl.cast(first_column, tl.int64) * key_stride
        keys = _load_features(tile_key, tile_column, key_stride, 0, features, BLOCK_FEATURES, EVEN)
        logits = sigma * tl.dot(held, tl.trans(keys))
        counted, positive = _kinds(
            row, column, columns, row_label, key_labels, self_offset, LABELS, SELF
        )
        logits = tl.where(counted, logits, float("-inf"))
        g = _side_gradient(
            logits, positive, row_weights, rows, row[:, None], is_row[:, None],
            ROW_KIND, LABELS, OWN,
        )  # fmt: skip
        g += _side_gradient(
            logits, positive, column_weights, columns, column[None, :], (column < columns)[None, :],
            COLUMN_KIND, LABELS, OWN,
        )  # fmt: skip
        g *= factor
        product = tl.dot(g.to(keys.dtype), keys, product)

    feature = tl.arange(0, BLOCK_FEATURES)
    gradient += (split.to(tl.int64) * rows + first_row) * gradient_features
    offset = tl.arange(0, BLOCK_ROWS)[:, None] * gradient_features + feature[None, :]
    tl.store(
        gradient + offset,
        product * (sigma / factor),
        mask=is_row[:, None] & (feature < gradient_features)[None, :],
    )


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "rows",
        "columns",
        "self_offset",
        "row_weight_stride",
        "column_weight_stride",
    ]
)
def gradient_tile_kernel(
    query: tl.tensor,
    key: tl.tensor,
    scale: tl.tensor,
    lift: tl.tensor,
    query_labels: tl.tensor,
    key_labels: tl.tensor,
    row_weights: tl.tensor,
    column_weights: tl.tensor,
    of_logits: tl.tensor,
    of_query: tl.tensor,
    of_key: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    gradient_features: int,
    query_stride: int,
    key_stride: int,
    row_weight_stride: int,
    column_weight_stride: int,
    of_logits_stride: int,
    self_offset: int,
    LABELS: tl.constexpr,
    SELF: tl.constexpr,
    ROW_KIND: tl.constexpr,
    COLUMN_KIND: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
) -> None:
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    first_row = (tl.program_id(0) // column_tiles) * BLOCK_ROWS
    first_column = (tl.program_id(0) % column_tiles) * BLOCK_COLUMNS

    inner_row = tl.arange(0, BLOCK_ROWS)
    inner_column = tl.arange(0, BLOCK_COLUMNS)
    row = first_row + inner_row
    column = first_column + inner_column
    is_row = row < rows
    is_column = column < columns
    tile_row = tl.minimum(inner_row, rows - 1 - first_row)
    tile_column = tl.minimum(inner_column, columns - 1 - first_column)
    query += first_row.to(tl.int64) * query_stride
    key += first_column.to(tl.int64) * key_stride
    row_label = row
    if LABELS:
        row_label = tl.load(query_labels + row, mask=is_row, other=0)
    sigma = tl.load(scale)
    factor = 1.0
    if lift is not None:
        factor = tl.load(lift)

    logits = sigma * _products(
        row, query, tile_row, query_stride, key, tile_column, key_stride,
        features, PRECISION, False, EVEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_FEATURES,
    )  # fmt: skip
    counted, positive = _kinds(
        row, column, columns, row_label, key_labels, self_offset, LABELS, SELF
    )
    logits = tl.where(counted & is_row[:, None], logits, float("-inf"))
    g = _side_gradient(
        logits, positive, row_weights, row_weight_stride, row[:, None], is_row[:, None],
        ROW_KIND, LABELS, OWN,
    )  # fmt: skip
    g += _side_gradient(
        logits, positive, column_weights, column_weight_stride, column[None, :], is_column[None, :],
        COLUMN_KIND, LABELS, OWN,
    )  # fmt: skip
    g *= factor

    if of_logits is not None:
        g = g.to(of_logits.dtype.element_ty)
        of_logits += first_row.to(tl.int64) * of_logits_stride + first_column
        offset = inner_row[:, None] * of_logits_stride + inner_column[None, :]
        tl.store(of_logits + offset, g, mask=is_row[:, None] & is_column[None, :])
    else:
        g = g.to(query.dtype.element_ty)
        of_query += first_row.to(tl.int64) * gradient_features
        of_key += first_column.to(tl.int64) * gradient_features
        for start in range(0, features, BLOCK_FEATURES):
            feature = start + tl.arange(0, BLOCK_FEATURES)
            is_feature = (feature < gradient_features)[None, :]
            b = _load_features(key, tile_column, key_stride, start, features, BLOCK_FEATURES, EVEN)
            tl.atomic_add(
                of_query + inner_row[:, None] * gradient_features + feature[None, :],
                tl.dot(g, b) * (sigma / factor),
                mask=is_row[:, None] & is_feature,
                sem="relaxed",
            )
            a = _load_features(query, tile_row, query_stride, start, features, BLOCK_FEATURES, EVEN)
            tl.atomic_add(
                of_key + inner_column[:, None] * gradient_features + feature[None, :],
                tl.dot(tl.trans(g), a) * (sigma / factor),
                mask=is_column[:, None] & is_feature,
                sem="relaxed",
            )
