"""Each piece of the builder, computed and compared, at every vector width this host has."""

import mmap
import subprocess
import sys

import pytest
import torch

from checking.guards import guarded
from convlens.kernels.cpu.codegen import BF16, F32, I32, Module, compiled, emit_object, forced, host, neon

WIDTHS = [lanes for lanes in (4, 8, 16) if lanes <= host().lanes]


@pytest.fixture(params=WIDTHS)
def lanes(request):
    target = host() if request.param == host().lanes else host().narrowed(request.param)
    with forced(target):
        yield request.param


def elementwise(emit):
    """Build ``y[0:n] = emit(f, x[0:n], z[0:n])`` for vectors of the target's width."""

    def build(m, **_):
        n = m.target.lanes
        with m.function("run", x="f32*", z="f32*", y="f32*") as f:
            f.y.store(emit(f, f.x.load(0, n), f.z.load(0, n)))

    return build


VECTOR_CASES = {
    "add": (lambda f, x, z: x + z, lambda x, z: x + z),
    "reversed_sub": (lambda f, x, z: 1.0 - x, lambda x, z: 1 - x),
    "mul_div": (lambda f, x, z: x * 2.0 / z, lambda x, z: x * 2 / z),
    "fma": (
        lambda f, x, z: f.fma(x, z, x),
        lambda x, z: torch.addcmul(x.double(), x.double(), z.double()).float(),
    ),
    "negate": (lambda f, x, z: -x, lambda x, z: -x),
    "max": (lambda f, x, z: f.max(x, z), torch.maximum),
    "min": (lambda f, x, z: f.min(x, 0.0), lambda x, z: x.clamp(max=0)),
    "select": (lambda f, x, z: f.select(x < z, x, f.zeros(x.lanes)), lambda x, z: torch.where(x < z, x, 0.0)),
    "sum": (lambda f, x, z: f.broadcast(f.sum(x), x.lanes), lambda x, z: x.sum().expand(len(x))),
    "reverse": (lambda f, x, z: f.shuffle(x, z, range(x.lanes)[::-1]), lambda x, z: x.flip(0)),
    "interleave": (
        lambda f, x, z: f.shuffle(f.interleave(x, z), f.interleave(x, z), range(x.lanes)),
        lambda x, z: torch.stack([x, z], 1).flatten()[: len(x)],
    ),
    "bf16": (lambda f, x, z: f.from_bf16(f.to_bf16(x)), lambda x, z: x.bfloat16().float()),
    "extract": (lambda f, x, z: f.broadcast(f.extract(x, 2), x.lanes), lambda x, z: x[2].expand(len(x))),
    "any": (
        lambda f, x, z: f.select(f.any(x > 100.0), x, f.splat(7.0, x.lanes)),
        lambda x, z: torch.full_like(x, 7),
    ),
}


@pytest.mark.parametrize("name", VECTOR_CASES)
def test_vector_instructions(lanes, name):
    emit, expected = VECTOR_CASES[name]
    x, z = torch.randn(lanes), torch.randn(lanes)
    y = torch.full((lanes,), torch.nan)
    compiled(f"test.{name}", elementwise(emit)).run(x.data_ptr(), z.data_ptr(), y.data_ptr(), 1)
    torch.testing.assert_close(y, expected(x, z), rtol=1e-6, atol=1e-6)


def test_max_keeps_nan_as_relu_does(lanes):
    x = torch.full((lanes,), torch.nan)
    y = torch.zeros(lanes)
    kernel = compiled("test.nanmax", elementwise(lambda f, x, z: f.max(x, 0.0)))
    kernel.run(x.data_ptr(), x.data_ptr(), y.data_ptr(), 1)
    assert y.isnan().all()


def test_split_bf16_parts_add_up(lanes):
    def build(m):
        n = m.target.lanes
        with m.function("run", x="f32*", parts="bf16*") as f:
            for k, part in enumerate(f.split_bf16(f.x.load(0, n), 3)):
                f.parts.store(part, k * n)

    x = torch.randn(lanes) * 100
    parts = torch.zeros(3, lanes, dtype=torch.bfloat16)
    compiled("test.split", build).run(x.data_ptr(), parts.data_ptr(), 1)
    assert torch.equal(parts.double().sum(0).float(), x)
    assert torch.equal(parts[0], x.bfloat16())


def test_transpose(lanes):
    def build(m):
        n = m.target.lanes
        with m.function("run", x="f32*", y="f32*") as f:
            for i, row in enumerate(f.transpose([f.x.load(i * n, n) for i in range(n)])):
                f.y.store(row, i * n)

    x = torch.arange(lanes * lanes, dtype=torch.float32).view(lanes, lanes)
    y = torch.zeros_like(x)
    compiled("test.transpose", build).run(x.data_ptr(), y.data_ptr(), 1)
    assert torch.equal(y, x.T)


@pytest.mark.parametrize("against", ["end", "start"])
def test_masked_tails_touch_nothing_outside(lanes, against):
    def build(m):
        n = m.target.lanes
        with m.function("run", x="f32*", y="f32*", count="int") as f:
            mask = f.mask_below(f.count, n)
            f.y.store(f.x.load(0, n, mask=mask) + 1.0, mask=mask)

    kernel = compiled("test.mask", build)
    for count in range(lanes + 1):
        x = guarded(torch.randn(count), against=against)
        y = guarded((count,), against=against)
        kernel.run(x.data_ptr(), y.data_ptr(), count, 1)
        assert torch.equal(y, x + 1)


@pytest.mark.parametrize("count", [-5, 1 << 40])
def test_mask_of_any_count(lanes, count):
    def build(m):
        n = m.target.lanes
        with m.function("run", y="f32*", count="int") as f:
            f.y.store(f.splat(1.0, n), mask=f.mask_below(f.count, n))

    y = torch.zeros(lanes)
    compiled("test.maskcount", build).run(y.data_ptr(), count, 1)
    assert bool((y == (count > 0)).all())


def test_gather(lanes):
    def build(m):
        n = m.target.lanes
        with m.function("run", x="f32*", y="f32*") as f:
            f.y.store(f.gather(f.x, f.iota(n) * 3, f.mask_below(n - 1, n)))

    x = guarded(torch.arange(3 * lanes - 5, dtype=torch.float32))
    y = torch.full((lanes,), torch.nan)
    compiled("test.gather", build).run(x.data_ptr(), y.data_ptr(), 1)
    expected = torch.arange(lanes, dtype=torch.float32) * 3
    expected[-1] = 0
    assert torch.equal(y, expected)


def test_loops_variables_and_branches():
    def build(m):
        with m.function("run", y="f32*", n="int") as f:
            total, odd = f.variable(0.0), f.variable(f.number(0.0))
            with f.loop(0, f.n, 3) as i:
                with f.when_else((i % 2).equals(0)) as (then, otherwise):
                    with then:
                        total.set(total.get() + 1.0)
                    with otherwise:
                        odd.set(odd.get() + 1.0)
            step = f.variable(1)
            with f.repeat_while() as leave:
                leave(step.get() >= 100)
                step.set(step.get() * 2)
            with f.when(step.get().equals(128)):
                f.y.store(f.number(5.0), 2)
            f.y.store(total.get())
            f.y.store(odd.get(), 1)

    y = torch.zeros(3)
    compiled("test.loops", build).run(y.data_ptr(), 31, 1)
    assert y.tolist() == [6, 5, 5]


def test_integer_constants_fold_and_indices_are_wide():
    module = Module("m")
    with module.function("run", x="f32*", n="int") as f:
        assert (f.index(6) * 7 + 0).ir.constant == 42
        assert (f.n * 0).ir.constant == 0
        assert (f.n + 0) is f.n
        place = f.n * (1 << 20)
        assert str(place.type) == "i64"
    with module.function("scratch") as f:
        f.scratch(I32, 4).store(f.zeros(4, I32))
    assert "i64" in str(module.ir)


def test_argument_that_hides_the_builder_is_refused():
    with pytest.raises(ValueError, match="'loop' of run hides"):
        with Module("m").function("run", loop="f32*"):
            pass


def test_scratch_and_prefetch(lanes):
    def build(m):
        n = m.target.lanes
        with m.function("run", x="f32*", y="f32*") as f:
            f.x.prefetch(64, locality=2)
            held = f.scratch(F32, 2 * n)
            held.store(f.x.load(0, n), n, align=n * 4)
            f.y.store(held.load(n, n))

    x, y = torch.randn(lanes), torch.zeros(lanes)
    compiled("test.scratch", build).run(x.data_ptr(), y.data_ptr(), 1)
    assert torch.equal(x, y)


@pytest.mark.skipif(not host().has_amx, reason="this processor or kernel has no AMX tiles")
def test_tile_product():
    def build(m):
        with m.function("run", a="bf16*", b="bf16*", c="f32*") as f:
            f.tile_config([(16, 64)] * 3)
            f.tile_zero(0)
            f.tile_load(1, f.a, 64)
            f.tile_load(2, f.b, 64)
            f.tile_dot(0, 1, 2)
            f.tile_store(0, f.c, 64)
            f.tile_release()

    a, b = torch.randn(16, 32).bfloat16(), torch.randn(32, 16).bfloat16()
    pairs = b.view(16, 2, 16).transpose(1, 2).contiguous()
    c = torch.full((16, 16), torch.nan)
    compiled("test.tile", build).run(a.data_ptr(), pairs.data_ptr(), c.data_ptr(), 1)
    torch.testing.assert_close(c, a.float() @ b.float())


@pytest.mark.parametrize("target", [neon(), host().narrowed(8), host().narrowed(4)], ids=["neon", "avx2", "sse4"])
def test_every_piece_compiles_for_other_machines(target):
    module = Module("pieces", target)
    n = target.lanes
    with module.body("rows", x="f32*", y="f32*") as rows:
        f = rows
        with f.loop(f.begin, f.end) as i:
            f.y.store(f.max(f.x.load(i, n, mask=f.mask_below(f.end - i, n)), 0.0), i)
    with module.function("run", x="f32*", y="f32*", h="bf16*") as f:
        for k, row in enumerate(f.transpose([f.x.load(i * n, n) for i in range(n)])):
            f.y.store(f.fma(row, row, row), k * n)
        f.h.store(f.to_bf16(f.x.load(0, n)))
        f.y.store(f.gather(f.x, f.iota(n)))
        f.parallel(rows, 100, f.x, f.y, grain=3)
    assert emit_object(module)[:4] == b"\x7fELF"


def test_invalid_ir_is_refused_by_the_verifier():
    module = Module("bad")
    with module.function("run", x="bf16*") as f:
        value = f.x.load(0, 8)
        f.irb.store(value.ir, f.irb.inttoptr(f.index(8).ir, f.x.type))
        f.irb.fadd(f.zeros(8, BF16).ir, value.ir)
        f.ir.append_basic_block("unfinished")
    with pytest.raises(RuntimeError):
        emit_object(module)


@pytest.mark.parametrize("against", ["end", "start"])
def test_guarded_arrays_stop_a_stray_access(against):
    side = "data_ptr() + x.nbytes" if against == "end" else "data_ptr() - 4"
    code = (
        "import sys, ctypes; sys.path.insert(0, 'tests')\n"
        "from checking.guards import guarded\n"
        f"x = guarded((5,), against={against!r})\n"
        "assert x.isnan().all()\n"
        "print('alive', flush=True)\n"
        f"ctypes.c_float.from_address(x.{side}).value\n"
        "print('missed', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode < 0
    assert mmap.PAGESIZE >= 4096
