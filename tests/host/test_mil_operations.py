"""The interpreter's operations on elements, against coremltools, torch and closed forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from mil_factory import assert_close, run, run_all, tensor
from torch.nn import functional as F

from mmsr_edge.converters.mil.table import OPERATIONS
from mmsr_edge.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable


def test_there_are_enough_operations() -> None:
    assert len(OPERATIONS) >= 100


# --- Element by element: values that coremltools infers for constants ---------------------------

UNARY = ("abs", "ceil", "cos", "erf", "exp", "floor", "relu", "round", "sigmoid", "sign", "sin")
UNARY += ("softplus", "sqrt", "square", "tan", "tanh", "atan", "exp2", "sinh", "cosh")
BINARY = ("add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum", "pow")
BINARY += ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")


def test_elementwise_operations_are_those_of_coremltools() -> None:
    coremltools = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder

    x = np.array([[-2.5, -1.0, -0.3, 0.0], [0.5, 0.7, 1.5, 2.5]], np.float32)
    y = np.array([[2.0, -3.0, 0.7, 1.0], [0.5, 0.3, -1.5, 2.0]], np.float32)
    inferred: dict[str, tuple[dict[str, Any], Any]] = {}

    @Builder.program(input_specs=[Builder.TensorSpec((1,))], opset_version=coremltools.target.iOS17)
    def program(unused: Any) -> Any:
        for name in (*UNARY, *BINARY):
            arguments = {"x": np.abs(x) if name in ("sqrt", "pow") else x}
            if name in BINARY:
                arguments["y"] = y
            inferred[name] = arguments, getattr(Builder, name)(**arguments).val
        return Builder.identity(x=unused)

    for name, (arguments, value) in inferred.items():
        assert value is not None, name
        got = run(name, **{key: torch.from_numpy(given) for key, given in arguments.items()})
        torch.testing.assert_close(got, torch.from_numpy(np.asarray(value)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "formula"),
    [
        ("clip", {"alpha": -0.5, "beta": 0.5}, lambda x: np.clip(x, -0.5, 0.5)),
        ("threshold", {"alpha": 0.2}, lambda x: np.maximum(x, 0.2)),
        ("inverse", {"epsilon": 0.1}, lambda x: 1 / (x + 0.1)),
        ("leaky_relu", {"alpha": 0.3}, lambda x: np.where(x >= 0, x, 0.3 * x)),
        ("elu", {"alpha": 2.0}, lambda x: np.where(x >= 0, x, 2 * (np.exp(x) - 1))),
        ("linear_activation", {"alpha": 2.0, "beta": 1.0}, lambda x: 2 * x + 1),
        ("scaled_tanh", {"alpha": 2.0, "beta": 0.5}, lambda x: 2 * np.tanh(0.5 * x)),
        ("sigmoid_hard", {}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
        ("thresholded_relu", {"alpha": 0.4}, lambda x: np.where(x >= 0.4, x, 0)),
        ("clamped_relu", {"alpha": 0.1, "beta": 0.6}, lambda x: np.clip(x, 0.1 * x, 0.6)),
        ("gelu", {"mode": "SIGMOID_APPROXIMATION"}, lambda x: x / (1 + np.exp(-1.702 * x))),
        ("softsign", {}, lambda x: x / (1 + np.abs(x))),
        ("relu6", {}, lambda x: np.clip(x, 0, 6)),
    ],
)  # fmt: skip
def test_activations_are_their_formulas(
    name: str, parameters: dict[str, Any], formula: Callable[[Any], Any]
) -> None:
    x = tensor(3, 5)
    assert_close(run(name, x=x, **parameters), formula(x.numpy()))


def test_activations_are_those_of_torch() -> None:
    x = tensor(2, 3, 4)
    assert_close(run("gelu", x=x), F.gelu(x))
    assert_close(run("gelu", x=x, mode="TANH_APPROXIMATION"), F.gelu(x, approximate="tanh"))
    assert_close(run("silu", x=x), F.silu(x))
    assert_close(run("softmax", x=x, axis=1), torch.softmax(x, 1))
    slope = torch.tensor([0.1, 0.2, 0.3])
    assert_close(run("prelu", x=x, alpha=slope), F.prelu(x, slope))
    positive = x.abs()
    assert_close(run("rsqrt", x=positive, epsilon=0.5), 1 / (positive + 0.5).sqrt())
    assert_close(run("log", x=positive, epsilon=0.5), (positive + 0.5).log())


def test_casts_and_integers() -> None:
    assert run("cast", x=torch.tensor([-1.7, 1.7]), dtype="int32").tolist() == [-1, 1]
    assert run("cast", x=torch.tensor([0.0, 0.1]), dtype="bool").tolist() == [False, True]
    seven, minus = torch.tensor([7, -7], dtype=torch.int32), torch.tensor(2, dtype=torch.int32)
    assert run("floor_div", x=seven, y=minus).tolist() == [3, -4]
    assert run("mod", x=seven, y=-minus).tolist() == [-1, -1]
    assert run("logical_not", x=torch.tensor([True, False])).tolist() == [False, True]
    chosen = run("select", cond=torch.tensor([True, False]), a=seven, b=minus)
    assert chosen.tolist() == [7, 2]


@pytest.mark.parametrize("keep", [True, False])
def test_reductions(keep: bool) -> None:
    x = tensor(2, 3, 4)
    n = x.numpy()
    for name, expected in {
        "reduce_mean": n.mean((1, 2), keepdims=keep),
        "reduce_sum": n.sum((1, 2), keepdims=keep),
        "reduce_max": n.max((1, 2), keepdims=keep),
        "reduce_min": n.min((1, 2), keepdims=keep),
        "reduce_prod": n.prod((1, 2), keepdims=keep),
        "reduce_sum_square": (n**2).sum((1, 2), keepdims=keep),
        "reduce_l1_norm": np.abs(n).sum((1, 2), keepdims=keep),
        "reduce_l2_norm": np.sqrt((n**2).sum((1, 2), keepdims=keep)),
        "reduce_log_sum_exp": np.log(np.exp(n).sum((1, 2), keepdims=keep)),
    }.items():
        assert_close(run(name, x=x, axes=[1, -1], keep_dims=keep), expected)
    assert_close(run("reduce_mean", x=x), n.mean())
    assert_close(run("reduce_argmax", x=x, axis=1, keep_dims=keep), x.argmax(1, keepdim=keep))
    assert_close(run("reduce_argmin", x=x, axis=-1, keep_dims=keep), x.argmin(-1, keepdim=keep))


def test_cumulative_sums() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    assert run("cumsum", x=x).tolist() == [1, 3, 7]
    assert run("cumsum", x=x, exclusive=True).tolist() == [0, 1, 3]
    assert run("cumsum", x=x, reverse=True).tolist() == [7, 6, 4]
    assert run("cumsum", x=x, exclusive=True, reverse=True).tolist() == [6, 4, 0]


def test_products() -> None:
    x, y, bias = tensor(2, 3, 4), tensor(5, 4, seed=1), tensor(5, seed=2)
    assert_close(run("linear", x=x, weight=y, bias=bias), F.linear(x, y, bias))
    assert_close(run("matmul", x=x, y=y, transpose_y=True), x @ y.T)
    other = tensor(2, 3, 6, seed=3)
    assert_close(run("matmul", x=x, y=other, transpose_x=True), x.mT @ other)
    assert_close(run("einsum", values=(x, other), equation="bij,bik->bjk"), x.mT @ other)
    q, k, v = (tensor(1, 2, 5, 4, seed=s) for s in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert_close(
        run("scaled_dot_product_attention", query=q, key=k, value=v, attn_mask=mask),
        F.scaled_dot_product_attention(q, k, v, mask),
    )


# --- Moving elements ----------------------------------------------------------------------------


def test_shapes() -> None:
    x = tensor(2, 3, 4)
    assert run("shape", x=x).tolist() == [2, 3, 4]
    assert_close(run("reshape", x=x, shape=[0, -1]), x.reshape(2, 12))
    assert_close(run("transpose", x=x, perm=[2, 0, 1]), x.permute(2, 0, 1))
    assert_close(run("expand_dims", x=x, axes=[0, -1]), x[None, ..., None])
    assert_close(run("squeeze", x=x[:1, None], axes=[0, 1]), x[0])
    assert_close(run("squeeze", x=x[:1, None]), x[0])
    assert_close(run("flatten2d", x=x, axis=2), x.reshape(6, 4))
    assert_close(run("tile", x=x, reps=[1, 2, 3]), np.tile(x.numpy(), (1, 2, 3)))
    assert_close(run("reverse", x=x, axes=[0, 2]), x.flip(0, 2))
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), 2, axis=1)
    assert_close(run("sliding_windows", x=x, axis=1, size=2), np.moveaxis(windows, -1, 2).copy())
    with pytest.raises(BackendError, match=r"axes \[1\] of shape \[2, 3, 4\]"):
        run("squeeze", x=x, axes=[1])


def test_pixel_shuffle_and_unshuffle() -> None:
    x = tensor(1, 8, 2, 3)
    # Channel c·r² + i·r + j becomes pixel (i, j) of channel c.
    expected = x.reshape(1, 2, 2, 2, 2, 3).permute(0, 1, 4, 2, 5, 3).reshape(1, 2, 4, 6)
    shuffled = run("pixel_shuffle", x=x, upscale_factor=2)
    assert_close(shuffled, expected)
    assert_close(run("pixel_unshuffle", x=shuffled, downscale_factor=2), x)


def test_joins_and_parts() -> None:
    x, y = tensor(2, 3), tensor(2, 3, seed=1)
    assert_close(run("concat", values=(x, y), axis=1), torch.cat([x, y], 1))
    woven = run("concat", values=(x, y), axis=-1, interleave=True)
    assert_close(woven[:, ::2], x)
    assert_close(woven[:, 1::2], y)
    assert_close(run("stack", values=(x, y), axis=1), torch.stack([x, y], 1))
    whole = tensor(2, 6)
    for got, expected in zip(
        run_all("split", x=whole, axis=1, split_sizes=[1, 5]), whole.split([1, 5], 1), strict=True
    ):
        assert_close(got, expected)
    assert len(run_all("split", x=whole, axis=1, num_splits=3)) == 3


def test_slices_are_those_of_numpy() -> None:
    x = tensor(5, 6, 7)
    n = x.numpy()
    got = run("slice_by_index", x=x, begin=[1, -2, 5], end=[4, 0, 0], stride=[2, 1, -2],
              end_mask=[False, True, False])  # fmt: skip
    assert_close(got, n[1:4:2, -2:, 5:0:-2].copy())
    got = run("slice_by_index", x=x, begin=[0, 0, -1], end=[-1, 2, 0],
              begin_mask=[True, False, False], squeeze_mask=[False, False, True])  # fmt: skip
    assert_close(got, n[:-1, 0:2, -1])
    assert_close(run("slice_by_size", x=x, begin=[1, -3, 0], size=[2, 2, -1]), n[1:3, 3:5])


def test_padding() -> None:
    x = tensor(1, 2, 3, 4)
    n = x.numpy()
    widths = ((0, 0), (0, 0), (1, 2), (0, 1))
    for mode, name in {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.items():
        got = run("pad", x=x, pad=[1, 2, 0, 1], mode=mode, constant_val=0.0)
        assert_close(got, np.pad(n, widths, mode=name))  # type: ignore[call-overload]
    got = run("pad", x=x, pad=[0, 1], constant_val=7.0)
    assert_close(got, np.pad(n, ((0, 0),) * 3 + ((0, 1),), constant_values=7))
    assert_close(run("crop", x=x, crop_height=[1, 0], crop_width=[0, 2]), n[..., 1:, :-2])
    with pytest.raises(BackendError, match="mode 'circular'"):
        run("pad", x=x, pad=[0, 1], mode="circular")


def test_look_ups() -> None:
    x, index = tensor(4, 3, 5), torch.tensor([[1, -1], [0, 2]], dtype=torch.int32)
    n, i = x.numpy(), index.numpy()
    assert_close(run("gather", x=x, indices=index, axis=1), n[:, i])
    pair = torch.tensor([[0, 1], [1, 2], [2, 0], [-1, 1]], dtype=torch.int32)
    batched = np.stack([row[k] for row, k in zip(n, pair.numpy(), strict=True)])
    assert_close(run("gather", x=x, indices=pair, axis=1, batch_dims=1), batched)
    along = torch.randint(0, 3, (4, 2, 5))
    expected = np.take_along_axis(n, along.numpy(), 1)
    assert_close(run("gather_along_axis", x=x, indices=along, axis=1), expected)
    points = torch.tensor([[0, 1], [3, -1]], dtype=torch.int32)
    assert_close(run("gather_nd", x=x, indices=points), n[[0, 3], [1, 2]])
    with pytest.raises(BackendError, match=r"index in \[5, 5\] is outside of 3"):
        run("gather", x=x, indices=torch.tensor([5]), axis=1)


def test_scattered_updates() -> None:
    data, index = torch.zeros(4, 2), torch.tensor([1, 3, 1], dtype=torch.int32)
    updates = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert run("scatter", data=data, indices=index, updates=updates).tolist() == [
        [0, 0], [6, 8], [0, 0], [3, 4]]  # fmt: skip
    last = run("scatter", data=data, indices=index[:2], updates=updates[:2], mode="update")
    assert last.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    nd = run("scatter_nd", data=data, indices=torch.tensor([[0, 1]]), updates=torch.tensor([9.0]))
    assert nd.tolist() == [[0, 9], [0, 0], [0, 0], [0, 0]]
    columns = torch.tensor([[1], [0], [1], [0]])
    got = run("scatter_along_axis", data=data, indices=columns, updates=tensor(4, 1), axis=1)
    assert_close(got, data.scatter_add(1, columns, tensor(4, 1)))
    with pytest.raises(BackendError, match="mode 'xor'"):
        run("scatter", data=data, indices=index, updates=updates, mode="xor")


def test_constants_ranges_and_masks() -> None:
    assert run("fill", shape=[2, 2], value=3.0).tolist() == [[3, 3], [3, 3]]
    assert run("range_1d", start=1, end=7, step=2).tolist() == [1, 3, 5]
    hot = run("one_hot", indices=torch.tensor([2, 0]), one_hot_vector_size=3, axis=0)
    assert hot.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert run("non_zero", x=torch.tensor([[0, 5], [6, 0]])).tolist() == [[0, 1], [1, 0]]
    square = tensor(4, 4)
    assert_close(run("band_part", x=square, lower=0, upper=-1), square.triu())
    assert_close(run("band_part", x=square, lower=1, upper=0), square.tril() - square.tril(-2))


def test_orders() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 3.0]])
    values, indices = run_all("topk", x=x, k=2)
    assert (values.tolist(), indices.tolist()) == ([[3, 3]], [[0, 3]])
    values, indices = run_all("topk", x=x, k=2, ascending=True)
    assert (values.tolist(), indices.tolist()) == ([[1, 2]], [[1, 2]])
    assert len(run_all("topk", x=x, k=2, return_indices=False)) == 1
    assert run("argsort", x=x, ascending=True).tolist() == [[1, 2, 0, 3]]


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(BackendError, match=r"\['half_pixel'\] are not supported"):
        run("relu", x=tensor(2), half_pixel=True)
