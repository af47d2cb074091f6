"""The options of `fastadam.torch`: storage in fewer bits, clipping, what is not finite, averages, rows."""

import pytest
from torch_training import assert_close, fused, give_gradients, make, pair, torch, train, twins


def test_bfloat16_parameters_rounded_to_nearest_follow_torch():
    params = [torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()]
    others = twins(params)
    opt = fused.Adam(params, lr=0.01, rounding="nearest")
    other = torch.optim.Adam(others, lr=0.01, fused=True)
    train(opt, other, params, others, 20)
    assert opt.state[params[0]]["exp_avg"].dtype == torch.bfloat16
    off = (params[0].detach().float() - others[0].detach().float()).abs()
    assert off.mean() < 2e-3
    assert off.max() < 0.05


def test_float16_parameters_follow_torch():
    params = [torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).half().requires_grad_()]
    others = twins(params)
    opt, other = fused.Adam(params, lr=0.01), torch.optim.Adam(others, lr=0.01, fused=True)
    train(opt, other, params, others, 20)
    assert opt.state[params[0]]["exp_avg"].dtype == torch.float16
    assert_close([p.float() for p in params], [p.float() for p in others], 5e-3)


def test_master_weights_train_as_float32():
    exact = [torch.randn(5_000, generator=torch.Generator().manual_seed(0)).bfloat16().float().requires_grad_()]
    params = [exact[0].detach().bfloat16().requires_grad_()]
    opt = fused.AdamW(params, lr=1e-4, master_weights=True, moment_dtype="float32")
    other = fused.AdamW(exact, lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        params[0].grad = torch.randn(5_000, generator=generator).bfloat16()
        exact[0].grad = params[0].grad.float()
        opt.step()
        other.step()
    remainder = opt.state[params[0]]["remainder"]
    bits = (params[0].detach().view(torch.int16).int() << 16) + remainder.int()  # -0x8000 to 0x7FFF
    assert torch.equal(bits.view(torch.float32), exact[0].detach())


@pytest.mark.parametrize("moment_dtype", ["bfloat16", "float8", ("float8", "bfloat16")], ids=str)
def test_moments_in_fewer_bits(moment_dtype):
    params = [
        torch.randn(5_000, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        torch.randn(9).requires_grad_(),
    ]
    others = twins(params)
    opt, other = fused.Adam(params, lr=0.01, moment_dtype=moment_dtype), torch.optim.Adam(others, lr=0.01)
    train(opt, other, params, others, 20)
    entry = opt.state[params[0]]
    assert entry["exp_avg"].dtype == (torch.bfloat16 if moment_dtype == "bfloat16" else torch.uint8)
    assert ("exp_avg_exponent" in entry) == (moment_dtype != "bfloat16")
    off = (params[0] - others[0]).abs()
    assert 0 < off.mean() < 0.02


def test_clipping_is_that_of_torch():
    opt, other, params, others = pair("AdamW", torch.float32, lr=0.01)
    opt = fused.AdamW(params, lr=0.01, max_grad_norm=0.5)
    generator = torch.Generator().manual_seed(1)
    for step in range(10):
        give_gradients(params, others, generator, {step % 3})
        given = [p.grad.clone() for p in params if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(others, 0.5)
        opt.step()
        other.step()
        assert opt.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        left = [p.grad for p in params if p.grad is not None]
        assert all(torch.equal(gradient, before) for gradient, before in zip(left, given, strict=True))
    assert_close(params, others, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_is_skipped_or_raised(dtype):
    raising = {"nonfinite": "raise"}, {"nonfinite": "skip", "max_skipped_steps": 0}
    for policy in ({"nonfinite": "skip"}, *raising):
        params = [
            ("a", torch.ones(2, 3, dtype=dtype, requires_grad=True)),
            ("b", torch.ones(2, dtype=dtype, requires_grad=True)),
        ]
        tensors = [p for _, p in params]
        opt = fused.Adam(params, lr=0.5, **policy)
        for p in tensors:
            p.grad = torch.ones_like(p)
        opt.step()
        before = twins(tensors)
        tensors[0].grad[1, 2] = float("inf")
        if policy in raising:
            with pytest.raises(
                FloatingPointError, match=r"the gradient of 'a' must be finite, got inf at index \(1, 2\)"
            ):
                opt.step()
        else:
            opt.step()
        assert opt.skipped_steps == (policy not in raising)
        assert all(torch.equal(p, twin) for p, twin in zip(tensors, before, strict=True))
        assert opt.state[tensors[1]]["step"] == 1
        tensors[0].grad = torch.ones(2, 3, dtype=dtype)
        opt.step()
        assert opt.state[tensors[1]]["step"] == 2
        assert not torch.equal(tensors[1], before[1])


def test_many_skipped_steps_in_a_row_are_said():
    (p,) = params = [torch.ones(3, requires_grad=True)]
    opt = fused.Adam(params, nonfinite="skip")
    p.grad = torch.full((3,), float("nan"))
    for _ in range(99):
        opt.step()
    with pytest.warns(RuntimeWarning, match="100 steps in a row were skipped") as found:
        opt.step()
    assert found[0].filename == __file__


def test_averages_and_copies_are_in_the_state():
    params = make()
    opt = fused.Adam(params, lr=0.01, ema_decay=0.9, copy_dtype="bfloat16")
    averages = twins(params)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        give_gradients(params, averages, generator, {1} if step == 2 else ())
        opt.step()
        if step == 3:  # everything is looked at anew, and the averages go on
            opt.load_state_dict(opt.state_dict())
        for index, (p, average) in enumerate(zip(params, averages, strict=True)):
            if (step, index) != (2, 1):
                average.data.lerp_(p.detach(), 0.1)
    trained = [(p, average) for p, average in zip(params, averages, strict=True) if p.requires_grad]
    for p, average in trained:
        torch.testing.assert_close(opt.state[p]["ema"], average.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(opt.state[p]["copy"], p.detach().bfloat16())


def test_sparse_gradients_are_rows():
    embedding = torch.nn.Embedding(50, 4, sparse=True)
    dense = torch.ones(3, requires_grad=True)
    other = torch.nn.Embedding(50, 4, sparse=True)
    other.load_state_dict(embedding.state_dict())
    opt = fused.Adam([embedding.weight, dense], lr=0.01)
    lazy = torch.optim.SparseAdam(other.parameters(), lr=0.01)
    before = embedding.weight.detach().clone()
    for rows in ([1, 5, 5], [7, 1, 9], [49, 0, 7]):
        for each, table in ((opt, embedding), (lazy, other)):
            each.zero_grad()
            table(torch.tensor(rows)).square().sum().backward()
        dense.grad = torch.ones(3)
        opt.step()
        lazy.step()
    torch.testing.assert_close(embedding.weight, other.weight, rtol=1e-4, atol=1e-5)
    untouched = [row for row in range(50) if row not in (0, 1, 5, 7, 9, 49)]
    assert torch.equal(embedding.weight[untouched], before[untouched])
    embedding.weight.grad = torch.ones(50, 4)  # and dense again
    opt.step()
    assert opt.state[dense]["step"] == 4


DENSE = {
    "plain": lambda values: values,
    "transposed": lambda values: values.T.contiguous().T,
    "negated": torch._neg_view,
    "expanded": lambda values: values[:1].expand(3, 4),
}


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("made", ["as usual", "leaf", "inference"])
@pytest.mark.parametrize("skipped", ["taken", "by the gradient", "by the scaler"])
def test_gradients_of_any_kind_are_zeroed(kind, made, skipped):
    values = torch.full((3, 4), float("inf") if skipped == "by the gradient" else 1.0)
    p, q = torch.ones(3, 4, requires_grad=True), torch.ones(5, requires_grad=True)
    opt = fused.AdamW([p, q], lr=0.1, zero_grad=True, nonfinite="skip")
    if skipped == "by the scaler":
        opt.found_inf = torch.tensor(1.0)
    with torch.inference_mode(made == "inference"):
        gradient = DENSE[kind](values.clone()).requires_grad_(made == "leaf")
    p.grad, q.grad = gradient, torch.ones(5)
    opt.step()
    assert not p.grad.any()
    assert not q.grad.any()
    assert opt.skipped_steps == (skipped != "taken")
    assert torch.equal(p, torch.ones(3, 4)) == (skipped != "taken")


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_sparse_gradients_are_zeroed(coalesced, nonfinite):
    values = torch.ones(3, 4) if nonfinite == "propagate" else torch.full((3, 4), float("inf"))
    gradient = torch.sparse_coo_tensor([[1, 1, 7]], values, (10, 4), check_invariants=True)
    p, q = torch.ones(10, 4, requires_grad=True), torch.ones(10, 4, requires_grad=True)
    opt = fused.AdamW([p, q], lr=0.1, zero_grad=True, nonfinite=nonfinite)
    p.grad = q.grad = gradient.coalesce() if coalesced else gradient
    opt.step()
    assert torch.equal(p, q)  # read for both, before it was zeroed
    assert (p[7] < 1.0).all() == (nonfinite == "propagate")
    assert p.grad._nnz() == 0
    opt.found_inf, p.grad = torch.tensor(1.0), gradient.clone()
    opt.step()
    assert p.grad._nnz() == 0


def test_an_embedding_is_trained_without_zeroing_it_by_hand():
    table, other = torch.nn.Embedding(20, 4, sparse=True), torch.nn.Embedding(20, 4, sparse=True)
    other.load_state_dict(table.state_dict())
    opt, lazy = fused.Adam(table.parameters(), zero_grad=True), torch.optim.SparseAdam(other.parameters())
    for step in range(5):
        lazy.zero_grad()
        for each in (table, other):
            each(torch.tensor([step, step + 1, step])).square().sum().backward()
        opt.step()
        lazy.step()
    torch.testing.assert_close(table.weight, other.weight, rtol=1e-5, atol=1e-6)


def test_the_words_of_rounding_depend_on_names_and_not_on_the_order():
    def trained(named, settings):
        opt = fused.AdamW(named, lr=1e-3, **settings)
        for _ in range(3):
            for _, p in named:
                p.grad = torch.full_like(p, 0.1)
            opt.step()
        return {name: p.detach() for name, p in named}

    def named():
        return [(name, torch.ones(300, dtype=torch.bfloat16, requires_grad=True)) for name in ("a", "b")]

    first, second = trained(named(), {}), trained(named()[::-1], {})
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], trained(named(), {"seed": 1})["a"])
