"""ICQ against a search that quantises anew for every candidate, against bitsandbytes, and against what must always hold."""

import builtins
import math
from concurrent.futures import ThreadPoolExecutor

import bitsandbytes.functional as bnb
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from lorascope.core.errors import InputError
from lorascope.quantization import code_entropy_bits, codebook, compiled, icq, quantize_icq
from lorascope.quantization.codebooks import borders
from lorascope.quantization.events import best_shift
from lorascope.quantization.packing import pack, packed_size, unpack
from lorascope.quantization.search import Candidates, best_listed, code_borders


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_at_a_time(weight, bits, n, lam, objective):
    """For each block the best score over all candidates, each quantised by itself."""
    values = codebook("nf", bits)
    rows = weight.reshape(-1, 64)
    median = rows.median(dim=1, keepdim=True).values
    reach = (rows - median).abs().amax(dim=1, keepdim=True)
    best = torch.full((rows.shape[0],), -math.inf, dtype=torch.float64)
    for f in torch.linspace(-lam * 0.54109, lam * 0.54109, 2 * n + 1):
        shift = median + f * reach
        scale = (rows - shift).abs().amax(dim=1, keepdim=True)
        codes = torch.bucketize((rows - shift) / scale, borders(values))
        error = -(values[codes] * scale + shift - rows).double().square().sum(dim=1)
        best = torch.maximum(best, code_entropy_bits(codes, values.numel()) if objective == "entropy" else error)
    return best


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_entropy_is_the_best_of_all_candidates(bits):
    weight = gaussian(256, 64)
    icq = quantize_icq(weight, bits=bits, n=20, double_quant=False)
    reference = one_at_a_time(weight, bits, 20, 0.1, "entropy")
    assert ((icq.block_entropy_bits - reference).abs() > 1e-5).sum() <= 1


def test_the_squared_error_is_the_best_of_all_candidates():
    weight = gaussian(256, 64)
    icq = quantize_icq(weight, n=20, objective="mse", double_quant=False)
    error = (icq.dequantize() - weight).double().square().sum(dim=1)
    torch.testing.assert_close(-error, one_at_a_time(weight, 4, 20, 0.1, "mse"), rtol=1e-4, atol=0)


def test_of_equal_entropies_the_lowest_error_is_taken():
    weight = gaussian(512, 64)
    icq = quantize_icq(weight, n=50, double_quant=False)
    first = quantize_icq(weight, n=0, double_quant=False)
    same = (icq.block_entropy_bits - first.block_entropy_bits).abs() < 1e-9
    assert 0 < same.sum() < 512
    error, plain = ((q.dequantize() - weight).double().square().sum(dim=1)[same] for q in (icq, first))
    assert (error <= plain * (1 + 1e-6)).all()
    assert (error < plain * 0.99).any()


def test_codes_are_those_of_bitsandbytes_with_nested_scales_too():
    weight = gaussian(512, 256)
    packed, _ = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(packed.flatten(), quantize_icq(weight, objective="none").packed)


@pytest.mark.parametrize("count", [1 << 16, 1000, 65, 7, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_a_shift_codes_are_those_of_bitsandbytes(count, dtype):
    weight = gaussian(count).to(dtype)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    plain = quantize_icq(weight, objective="none", double_quant=False)
    assert torch.equal(unpack(packed.flatten(), 4, count), plain.codes.flatten())
    torch.testing.assert_close(plain.scale.values(), state.absmax, rtol=0, atol=0)
    theirs = bnb.dequantize_4bit(packed, state).flatten()
    torch.testing.assert_close(plain.dequantize(), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("search", [("nf", "shift"), ("int", "shift"), ("int", "scale")])
def test_the_entropy_that_is_reported_is_that_of_the_stored_codes(double_quant, search):
    kind, how = search
    icq = quantize_icq(gaussian(37, 53), codebook_kind=kind, search=how, double_quant=double_quant, group_size=8)
    flat = icq.codes.flatten().long()
    whole = flat.numel() // 64 * 64
    again = torch.cat([code_entropy_bits(flat[:whole].view(-1, 64), 16), code_entropy_bits(flat[None, whole:], 16)])
    assert torch.equal(icq.block_entropy_bits, again)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", ["nf", "int"])
def test_codes_are_the_nearest_ones_for_the_stored_shift(kind, double_quant):
    weight = gaussian(37, 53)
    icq = quantize_icq(weight, codebook_kind=kind, double_quant=double_quant, group_size=8)
    shift = icq.shift.values()
    flat, codes = weight.flatten(), icq.codes.flatten().long()
    block = torch.arange(flat.numel()) // 64
    away = flat - shift[block]
    scale = torch.zeros_like(shift).scatter_reduce_(0, block, away.abs(), "amax")
    nearest = (codebook(kind, 4) * scale[block, None] - away[:, None]).abs().argmin(dim=1)
    assert (nearest != codes).sum() <= 1  # a weight on a border, to the last bit
    # The scale is rounded to one of 255 steps at most.
    assert ((icq.scale.values() - scale).abs() <= scale.max() / 255 / 2 * 1.001).all()


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4]),
    kind=st.sampled_from(["nf", "int"]),
    n=st.sampled_from([1, 3, 40]),
    lam=st.sampled_from([0.1, 1.0, 3.0]),
    size=st.sampled_from([2, 7, 64, 100]),
    shape=st.sampled_from(["normal", "heavy", "offset", "few values", "one value"]),
    objective=st.sampled_from(["entropy", "mse"]),
    seed=st.integers(0, 10**6),
)
def test_passing_of_borders_finds_what_trying_every_candidate_finds(bits, kind, n, lam, size, shape, objective, seed):
    rows = gaussian(6, size, seed=seed)
    rows = {
        "normal": rows,
        "heavy": rows**3,
        "offset": rows + 3,
        "few values": rows.round(),
        "one value": rows * 0 + 0.3,
    }[shape]
    values = codebook(kind, bits)
    ordered = rows.sort(dim=1).values
    low, high = ordered[:, :1], ordered[:, -1:]
    shift = rows.median(dim=1, keepdim=True).values + lam * torch.arange(-n, n + 1) / n * (high - low)
    scale = torch.maximum(high - shift, shift - low)
    candidates = Candidates(ordered, shift, scale, torch.ones_like(shift, dtype=torch.bool), values, borders(values))
    row, found = torch.arange(6), []
    for search in (best_shift, best_listed, compiled.best_shift):
        best, ordered_codes = search(candidates, objective)
        codes = torch.searchsorted(code_borders(shift[row, best], scale[row, best], borders(values)), rows)
        assert torch.equal(ordered_codes.long(), codes.sort(dim=1).values)
        error = (values[codes] * scale[row, best, None] + shift[row, best, None] - rows).double().square().sum(dim=1)
        found.append((code_entropy_bits(codes, values.numel()), error))
    # Of shifts that are equally good to rounding each way may take another.
    for entropy, error in found[1:]:
        if objective == "entropy":
            torch.testing.assert_close(entropy, found[0][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(error, found[0][1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"double_quant": False}, {"objective": "mse"}, {"bits": 2, "codebook_kind": "int"}]
)
def test_the_compiled_search_gives_the_same_codes(options, monkeypatch):
    weight = torch.cat([gaussian(90, 100), gaussian(10, 100, seed=1) ** 3, torch.ones(3, 100)])
    found = []
    for least in (math.inf, 0):
        monkeypatch.setattr(compiled, "_PAYS_BACK", least)
        found.append(quantize_icq(weight, **options))
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].dequantize(), found[1].dequantize())
    assert torch.equal(found[0].block_entropy_bits, found[1].block_entropy_bits)


def test_a_numba_that_does_not_work_is_done_without(monkeypatch):
    def refuse(name, *rest):
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.3 or less")
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(compiled, "_PAYS_BACK", 0)
    compiled._compiled.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert not compiled.is_quicker(10**9)
    monkeypatch.undo()
    compiled._compiled.cache_clear()


def test_threads_share_what_was_compiled(monkeypatch):
    monkeypatch.setattr(compiled, "_PAYS_BACK", 0)
    compiled._compiled.cache_clear()
    weight = gaussian(64, 64)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: quantize_icq(weight).codes, range(4)))
    assert all(torch.equal(codes, found[0]) for codes in found)
    assert compiled._compiled.cache_info().misses == 1


def test_blocks_are_searched_alike_whatever_blocks_are_beside_them(monkeypatch):
    # One block of large weights among small ones: its candidates are as stored, theirs are many that are stored alike.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 64, generator=generator)
    weight[300] = torch.linspace(-100, 100, 65)[1:]
    together = quantize_icq(weight)
    monkeypatch.setitem(icq._ENTRIES, "cpu", 1)
    alone = quantize_icq(weight)
    assert torch.equal(together.block_entropy_bits, alone.block_entropy_bits)
    assert torch.equal(together.codes, alone.codes)


@pytest.mark.parametrize("shape", [(64,), (3, 5), (1,), (64, 65), (2, 3, 129)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_shape_and_type(shape, dtype):
    weight = gaussian(*shape).to(dtype)
    icq = quantize_icq(weight, n=10)
    restored = icq.dequantize()
    assert restored.shape == weight.shape and restored.dtype == dtype and icq.codes.shape == weight.shape
    assert (restored - weight).float().square().mean() < 0.03
    assert torch.equal(unpack(icq.packed, 4, weight.numel()), icq.codes.flatten())


def test_bits_a_weight():
    weight = gaussian(1024, 256)
    assert quantize_icq(weight, n=1).bits_per_weight == pytest.approx(4 + 2 * (8 / 64 + 32 / (64 * 256)))
    assert quantize_icq(weight, objective="none").bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))
    assert quantize_icq(weight, bits=3, n=1, double_quant=False).bits_per_weight == pytest.approx(3 + 64 / 64)


def test_a_shift_that_does_not_fit_the_float_is_kept_with_less_than_a_unit_of_error():
    weight = gaussian(512, 64) + 0.3
    exact, stored = (quantize_icq(weight, n=50, double_quant=d) for d in (False, True))
    assert abs(exact.block_entropy_bits.mean() - stored.block_entropy_bits.mean()) < 0.02
    ratio = (stored.dequantize() - weight).square().mean() / (exact.dequantize() - weight).square().mean()
    assert ratio < 1.02


def test_blocks_that_hold_one_value():
    weight = torch.cat([torch.full((64,), 0.25), torch.zeros(64), gaussian(64)]).view(3, 64)
    icq = quantize_icq(weight)
    assert torch.isfinite(icq.dequantize()).all()
    torch.testing.assert_close(icq.dequantize()[:2], weight[:2], atol=0.01, rtol=0)
    exact = quantize_icq(weight, double_quant=False)
    torch.testing.assert_close(exact.dequantize()[:2], weight[:2], atol=0, rtol=0)
    assert exact.block_entropy_bits[0] == 0
    zeros = quantize_icq(torch.zeros(130))
    assert torch.equal(zeros.dequantize(), torch.zeros(130))


@settings(max_examples=30, deadline=None)
@given(
    scale=st.sampled_from([2.0**-20, 0.02, 1.0, 1024.0]),
    seed=st.integers(0, 10**6),
    bits=st.sampled_from([2, 3, 4]),
    heavy=st.booleans(),
)
def test_what_always_holds(scale, seed, bits, heavy):
    weight = gaussian(8, 64, seed=seed)
    weight = (weight**3 if heavy else weight) * scale
    plain = quantize_icq(weight, bits=bits, n=0, double_quant=False)
    icq = quantize_icq(weight, bits=bits, n=10, double_quant=False)
    best = quantize_icq(weight, bits=bits, n=10, objective="mse", double_quant=False)
    assert (icq.block_entropy_bits >= plain.block_entropy_bits - 1e-12).all()
    assert (icq.block_entropy_bits <= bits + 1e-12).all()
    errors = [(q.dequantize() - weight).double().square().sum(dim=1) for q in (best, plain)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    # A power of two changes shift and scale, and no code.
    doubled = quantize_icq(weight * 2, bits=bits, n=10, double_quant=False)
    assert torch.equal(doubled.codes, icq.codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@given(count=st.integers(1, 70), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_packing_loses_nothing(bits, count, seed):
    codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.numel() == packed_size(count, bits)
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize(
    ("weight", "options", "said"),
    [
        (torch.empty(0, 3), {}, "is empty"),
        (torch.tensor([1.0, math.nan]), {}, "NaN or infinity in 1 of 2"),
        (torch.tensor([1.0, math.inf]), {}, "NaN or infinity"),
        (torch.tensor([1, 2]), {}, "int64"),
        (torch.tensor([1e38, 1.0]), {}, "1e\\+38"),
        (torch.ones(4), {"bits": 5}, "bits 5 is not supported: choose from 2, 3, 4"),
        (torch.ones(4), {"bits": True}, "bits True"),
        (torch.ones(4).to(torch.float8_e4m3fn), {}, "float8_e4m3fn: only"),
        (torch.ones(4, device="meta"), {}, "on the meta device"),
        (torch.eye(4).to_sparse(), {}, "sparse"),
        (torch.ones(4), {"lam": 1e300}, "lam 1e\\+300"),
        (torch.ones(4), {"block_size": 1}, "block_size 1"),
        (torch.ones(4), {"n": -1}, "n -1"),
        (torch.ones(4), {"n": True}, "n True"),
        (torch.ones(4), {"lam": 0.0}, "lam 0.0"),
        (torch.ones(4), {"lam": math.nan}, "lam nan"),
        (torch.ones(4), {"objective": "entropi"}, "did you mean 'entropy'"),
        (torch.ones(4), {"codebook_kind": "fp"}, "unknown code book 'fp'"),
        (torch.ones(4), {"search": "scale"}, "for integers only"),
        (torch.ones(4), {"group_size": 0}, "group_size 0"),
    ],
)
def test_bad_input(weight, options, said):
    with pytest.raises(InputError, match=said):
        quantize_icq(weight, **options)


def test_a_block_that_makes_the_scales_of_others_coarse_is_said():
    weight = 0.02 * gaussian(512, 512)
    quantize_icq(weight)  # no warning: warnings are errors
    weight[0, 0] = 20.0
    with pytest.warns(UserWarning, match="lie beside a block of far larger weights"):
        coarse = quantize_icq(weight)
    fine = quantize_icq(weight, double_quant=False)
    others = slice(64, 256 * 64)
    error = [float((q.dequantize() - weight).flatten()[others].norm()) for q in (coarse, fine)]
    assert error[0] > 2 * error[1]
