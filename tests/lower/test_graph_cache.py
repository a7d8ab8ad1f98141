"""Lowered graphs that are kept on disk: the same program finds its own, in this process and in others, and nothing that
lowering depends on can change without a miss."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import unittest.mock
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import magpy
import magpy.joint
import magpy.products
from magpy import _C, choices, graph_key
from tests.compare import assert_same

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A kernel cache of the test's own; what it compiles is little."""
    monkeypatch.setenv("MAGPY_CACHE_DIR", str(tmp_path / "cache"))
    magpy.reset()
    return tmp_path / "cache"


def counted():
    return magpy.stats()["graph_cache"]


def names(cache):
    return {path.name for path in cache.glob("*.graph")}


def compiled(fn, *args, **options):
    """The result of a fresh callable's first call, whose trace is made anew."""
    torch.compiler.reset()
    return torch.compile(fn, backend="magpy", options=options)(*args)


def again(fn, make, calls=2):
    """Eager's results and those of a callable that found its graphs in the cache."""
    compiled(fn, *make())
    before = counted()
    torch.compiler.reset()
    c = torch.compile(fn, backend="magpy")
    results = []
    for _ in range(calls):
        args, others = make(), make()
        results.append((c(*args), fn(*others), args, others))
    after = counted()
    assert after["hits"] > before["hits"] and after["misses"] == before["misses"], after
    assert after["uncacheable"] == before["uncacheable"], after
    return results


# -- The same program -------------------------------------------------------------------------------------------------


def norm(x, w):
    return torch.relu(F.layer_norm(x @ w, (8,))).sum(-1)


def shows_inputs(x):
    return x[1], x.t(), x.view(-1)[2:], x * 2


def changes_input(x):
    x.mul_(3)
    return x + 1, x.view(-1)


def several(x):
    return x, None, 3, {"a": x + 1, "b": [x.float(), 1.5]}


def with_constants(x):
    table = torch.tensor([1.0, float("inf"), -0.0, 2.5, 3.0])
    return x[:, :5] * table, torch.where(x > 0, x, float("-inf")), torch.full_like(x, float("nan"))


def complex_numbers(x):
    return torch.view_as_real(x.to(torch.complex64) * (1 + 2j))


def random_numbers(x):
    torch.manual_seed(3)
    return F.dropout(x, 0.5), torch.rand(3)


def data_is_looked_at(x):
    return x * 2 if x.sum() > 0 else x - 1


def attention(x):
    q = x.view(1, 2, 4, 4)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


PROGRAMS = [norm, shows_inputs, changes_input, several, with_constants, complex_numbers, random_numbers,
            data_is_looked_at, attention]  # fmt: skip


def arguments(fn):
    torch.manual_seed(1)
    x = torch.randn(4, 8)
    return (x, torch.randn(8, 8)) if fn is norm else (x,)


@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda f: f.__name__)
def test_what_is_found_computes_the_same(fn):
    with torch.no_grad():
        for result, wanted, args, others in again(fn, lambda: arguments(fn)):
            assert_same(result, wanted)
            assert_same(args, others)


class Trained(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.n = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(8)

    def forward(self, x):
        h = self.n(torch.relu(self.a(x)))
        out = self.b(h)
        return (out**2).mean(), out, h


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1, 2), (2,)], ids=str)
def test_training_finds_both_passes(which):
    torch.manual_seed(0)
    model, x = Trained(), torch.randn(4, 8)
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def step(call):
        model.load_state_dict(start)
        model.zero_grad()
        out = call(x)
        sum(out[k].sum() for k in which).backward()
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        return [o.detach() for o in out], grads, [b.clone() for b in model.buffers()]

    wanted = step(model)
    c = torch.compile(model, backend="magpy")
    step(c), step(c)  # the first call is eager's
    first = counted()
    torch.compiler.reset()
    c = torch.compile(model, backend="magpy")
    for _ in range(3):
        assert_same(step(c), wanted)
    assert counted()["hits"] == first["hits"] + 2, "forward and backward"
    assert counted()["misses"] == first["misses"]


def test_another_part_of_a_backward_pass_than_was_kept():
    torch.manual_seed(0)
    model, x = Trained(), torch.randn(4, 8)

    def grads(call, k):
        model.zero_grad()
        model.eval()
        call(x)
        call(x)[k].sum().backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    grads(torch.compile(model, backend="magpy"), 0)
    torch.compiler.reset()
    c = torch.compile(model, backend="magpy")
    for k in (1, 2, 0):
        assert_same(grads(c, k), grads(model, k))
    assert counted()["hits"] == 2 and counted()["misses"] == 4


class Attended(torch.nn.Module):
    """Operators with several results that the backward pass reads: an attention, norms."""

    def __init__(self):
        super().__init__()
        self.a, self.n = torch.nn.Linear(8, 24), torch.nn.LayerNorm(8)

    def forward(self, x):
        q, k, v = self.a(self.n(x)).view(2, 5, 2, 12).transpose(1, 2).split(4, -1)
        y = F.scaled_dot_product_attention(q, k, v)
        return y, torch.var_mean(x * self.n.weight, -1), y.sum()


def marks(monkeypatch, times):
    """What the joint traces of equal programs are told apart by."""
    found = []
    usual = magpy.joint.Joint.set_mark
    monkeypatch.setattr(magpy.joint.Joint, "set_mark", lambda joint: (usual(joint), found.append(joint.mark))[0])
    torch.manual_seed(0)
    model, x = Attended(), torch.randn(2, 5, 8)
    for _ in range(times):
        torch.compiler.reset()
        compiled = torch.compile(model, backend="magpy")
        padding = [object() for _ in range(len(found) % 7)]  # objects lie elsewhere in memory each time
        compiled(x)[2].backward()
        del padding
    return found


def test_equal_programs_are_traced_and_cut_alike(monkeypatch):
    """A backward pass that is made later, or found, reads what another trace of the program has kept."""
    monkeypatch.setattr(graph_key, "_registered", lambda: None)  # nothing is found, each is traced
    found = marks(monkeypatch, 8)
    assert len(found) == 8 and len(set(found)) == 1 and found[0]


def test_a_backward_pass_of_another_forward_pass_is_not_found(monkeypatch, cache):
    torch.manual_seed(0)
    model, x = Trained(), torch.randn(4, 8)

    def run():
        torch.compiler.reset()
        compiled = torch.compile(model, backend="magpy")
        for _ in range(2):
            compiled(x)[0].backward()

    run()
    for name in names(cache):  # the forward pass is traced again, in another way
        if b'"training"' in (cache / name).read_bytes():
            os.unlink(cache / name)
    monkeypatch.setattr(magpy.joint.Joint, "set_mark", lambda joint: setattr(joint, "mark", "another"))
    before = counted()["hits"]
    run()
    assert counted()["hits"] == before


def in_process(code, cache, tmp_path, **env):
    """Run a script in a process of its own; what it prints."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    merged = {**os.environ, "PYTHONPATH": str(ROOT), "MAGPY_CACHE_DIR": str(cache), **env}
    out = subprocess.run([sys.executable, str(script)], env=merged, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr[-2000:]
    return out.stdout


PROCESS = """
    import torch, magpy
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8))
    x = torch.randn(4, 8, requires_grad=True)
    call = torch.compile(model, backend="magpy")
    call(x)
    out = call(x) * x
    out.sum().backward()
    stats = magpy.stats()["graph_cache"]
    print(stats["hits"], stats["misses"], stats["kept"], stats["uncacheable"], x.grad.sum().item(), out.sum().item())
"""


def test_another_process_finds_what_one_has_kept(cache, tmp_path):
    first = in_process(PROCESS, cache, tmp_path)
    second = in_process(PROCESS, cache, tmp_path)
    assert first.startswith("0 2 2 {}") and second.startswith("2 0 0 {}")
    assert first[8:] == second[8:]


def test_other_sources_of_magpy_find_nothing(cache, tmp_path):
    in_process(PROCESS, cache, tmp_path)
    copy = tmp_path / "other"
    shutil.copytree(ROOT / "magpy", copy / "magpy", ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "magpy" / "products.py", "a") as file:
        file.write("# another\n")
    os.utime(copy / "magpy" / "products.py", (1, 1))
    assert in_process(PROCESS, cache, tmp_path, PYTHONPATH=str(copy)).startswith("0 2 2 {}")
    assert in_process(PROCESS, cache, tmp_path, PYTHONPATH=str(copy)).startswith("2 0 0 {}")


# -- What makes another key -------------------------------------------------------------------------------------------


def key(fn, *args, **options):
    """The name under which a program's graph is kept."""
    directory = Path(os.environ["MAGPY_CACHE_DIR"])
    for path in directory.glob("*.graph"):
        path.unlink()
    compiled(fn, *args, **options)
    (name,) = names(directory)
    return name


def base():
    return torch.arange(12.0).view(3, 4)


def plain(x):
    return x * 2


LOOKS = {
    "sizes": lambda: torch.arange(15.0).view(3, 5),
    "strides": lambda: torch.arange(12.0).view(4, 3).t(),
    "dtype": lambda: base().double(),
    "offset": lambda: torch.arange(13.0)[1:].view(3, 4),
    "more memory behind": lambda: torch.arange(13.0)[:12].view(3, 4),
    "parameter": lambda: torch.nn.Parameter(base(), requires_grad=False),
    "inference tensor": lambda: torch.inference_mode()(base)(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_inputs_look_like(look):
    assert key(plain, base()) != key(plain, LOOKS[look]())
    assert key(plain, base()) == key(plain, base() + 1), "values are none of its business"


def test_inputs_that_are_differentiated_or_no_leaves():
    leaf, inner = base().requires_grad_(), base().requires_grad_() + 1
    assert len({key(plain, base()), key(plain, leaf), key(plain, inner)}) == 3


def test_inputs_that_share_memory():
    both = torch.zeros(24)
    x, y, z = both[:12], both[12:], torch.zeros(24)[12:]
    assert key(torch.add, x, y) != key(torch.add, x, z)
    assert key(torch.add, x, x[:]) != key(torch.add, x, both[:12].clone())


CONSTANTS = [0, 0.0, -0.0, False, None, 1, 1.0, True, 1.0000000000000002, float("nan"), -float("nan"), float("inf"),
             2**70, "1", b"1", 1j, -0j, complex(-0.0, 0.0), (1,), [1], (1, ()), ((1,),), {"a": 1, "b": 2},
             {"b": 2, "a": 1}, {1: "a"}, torch.Size([1]), slice(None, 1), slice(0, 1), ..., torch.float32,
             torch.float64, torch.strided, torch.preserve_format, torch.contiguous_format, torch.device("cpu"),
             torch.device("cpu", 0), float, int,
             torch.relu, torch.tanh, torch.Tensor.relu, torch.tensor([1.0]), torch.tensor([1]), torch.tensor(1.0),
             torch.tensor([0.0]), torch.tensor([-0.0]), torch.zeros(2, 3), torch.zeros(3, 2).t(),
             torch.ops.aten.add.Tensor, torch.ops.aten.add.Scalar,
             torch.Tensor.shape.__get__, torch.Tensor.dtype.__get__, F.relu, ("v", 1),
             ("tuple", 1), "nan", ("nan", "000000000000f87f")]  # fmt: skip


def test_every_constant_has_a_text_of_its_own():
    texts = {}
    for constant in CONSTANTS:
        text = repr(graph_key._text_of(constant))
        assert text not in texts, f"{constant!r} and {texts[text]!r}"
        texts[text] = constant
        again = torch.tensor(constant.tolist(), dtype=constant.dtype) if type(constant) is torch.Tensor else constant
        if not isinstance(again, torch.Tensor) or again.stride() == constant.stride():
            assert repr(graph_key._text_of(again)) == text


def scripted(body):
    """A TorchScript function of a tensor x and a number n."""
    source = f"def function(x: torch.Tensor, n: int = 2):\n    {body}\n"
    return torch.jit.CompilationUnit(source).function


SCRIPTS = ["return x * 0.1", "return x * 0.10000000000000002", "return x * 0.1 * n", "return x + 0.1", "return x * x",
           "return x if n > 2 else x * 0.1", "return x if n > 3 else x * 0.1", "return x[:2]",
           "return x[:3]"]  # fmt: skip


def test_every_script_has_a_text_of_its_own():
    scripts = [scripted(body) for body in SCRIPTS] + [torch.jit.script(plain)]
    texts = [repr(graph_key._text_of(script)) for script in scripts]
    assert len(set(texts)) == len(scripts)
    assert texts[:3] == [repr(graph_key._text_of(scripted(body))) for body in SCRIPTS[:3]]


class Odd(float):
    pass


@pytest.mark.parametrize(
    "constant",
    [object(), Odd(1.0), lambda x: x, plain, torch.Generator(), test_every_constant_has_a_text_of_its_own,
     torch.autograd.Function, torch.no_grad()(plain), torch.zeros(3, requires_grad=True), torch.zeros(1 << 19),
     math.sin, torch.jit.trace(lambda x: x + torch.tensor([1.0, 2.0]), torch.zeros(2)), {1, 2},
     range(3), Path, type("relu", (), {})()],
    ids=lambda c: type(c).__name__,
)  # fmt: skip
def test_what_has_no_text_that_means_the_same_elsewhere(constant):
    with pytest.raises(graph_key.Uncacheable):
        graph_key._text_of(constant)
    with pytest.raises(graph_key.Uncacheable):
        graph_key._text_of([1, {"a": (constant,)}])


def test_programs_that_differ_in_one_thing():
    x, y = base(), base()
    programs = [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x.sub(y, alpha=2),
        lambda x, y: x.sub(y, alpha=2.0),
        lambda x, y: (x - y) * 2,
        lambda x, y: (x - y) * 2.0,
        lambda x, y: x[:2] - y[:2],
        lambda x, y: x[:3] - y[:3],
        lambda x, y: x.sum(0),
        lambda x, y: x.sum((0,)),
        lambda x, y: x.sum([0]),
        lambda x, y: F.gelu(x),
        lambda x, y: F.gelu(x, approximate="tanh"),
    ]
    assert len({key(program, x, y) for program in programs}) == len(programs)


@contextlib.contextmanager
def switched(turn, value, back):
    turn(value)
    try:
        yield
    finally:
        turn(back)


MODES = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast without cache": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "default dtype": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
    "math attention": lambda: switched(torch.backends.cuda.enable_math_sdp, False, True),
    "flash attention": lambda: switched(torch.backends.cuda.enable_flash_sdp, False, True),
    "precision": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "threads": lambda: switched(torch.set_num_threads, 2, 1),
    "flush denormal": lambda: switched(torch.set_flush_denormal, True, False),
    "fake tensors": lambda: torch._functorch.config.patch(fake_tensor_allow_meta=False),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_and_switches_of_torch(mode):
    usual = key(plain, base())
    with MODES[mode]():
        other = key(plain, base())
    assert other != usual
    assert key(plain, base()) == usual or mode == "precision", "which does not come back as it was"


@pytest.mark.parametrize("option", [{"fuse": False}, {"trace_limit": 3}])
def test_options(option):
    assert key(plain, base(), **option) != key(plain, base())


@pytest.mark.parametrize("place", range(len(graph_key._versions())))
def test_versions(place, monkeypatch):
    usual = key(plain, base())
    versions = list(graph_key._versions())
    versions[place] = "another"
    _changed(monkeypatch, "_versions", tuple(versions))
    assert key(plain, base()) != usual


@pytest.mark.parametrize("place", range(len(graph_key._state())))
def test_state(place, monkeypatch):
    usual = key(plain, base())
    state = list(graph_key._state())
    state[place] = "another"
    _changed(monkeypatch, "_state", tuple(state))
    assert key(plain, base()) != usual


def _changed(monkeypatch, name, value):
    """Replace a function of graph_key by one that passes for its own."""
    made = {}
    exec(
        compile(f"def {name}(): return value", graph_key.__file__, "exec"), {"value": value, "__name__": "magpy"}, made
    )
    monkeypatch.setattr(graph_key, name, made[name])


def test_a_constant_of_a_lowering_module(monkeypatch):
    usual = key(plain, base())
    monkeypatch.setattr(magpy.products, "MIN_ONEDNN", 1)
    assert key(plain, base()) != usual


# -- What is not kept -------------------------------------------------------------------------------------------------


def refused(fn, *args, **options):
    """Why the program is not kept."""
    directory = Path(os.environ["MAGPY_CACHE_DIR"])
    compiled(fn, *args, **options)
    assert not names(directory) and not counted()["kept"] and not counted()["hits"]
    (reason,) = counted()["uncacheable"]
    return reason


@pytest.mark.parametrize("place", [F, torch, torch.Tensor, torch.functional])
def test_what_stands_in_a_place_of_torchs_is_asked_each_time(place, monkeypatch):
    with torch.no_grad():
        compiled(plain, base())
        assert counted()["kept"] == 1
        monkeypatch.setattr(place, "split", unittest.mock.MagicMock(), raising=False)
        compiled(plain, base())
        assert list(counted()["uncacheable"]) == [f"{place.__module__ + '.' if place is torch.Tensor else ''}"
                                                  f"{place.__name__}.split is replaced"]  # fmt: skip
        monkeypatch.undo()


def test_vmap_has_implementations_of_torchs_own():
    with torch.no_grad():
        compiled(plain, base())
        torch.vmap(lambda x: x + 1)(torch.ones(2))
        before = counted()
        compiled(plain, base())
        assert (counted()["hits"], counted()["uncacheable"]) == (before["hits"] + 1, {})


def test_an_operator_of_torchs_that_the_program_implements():
    """The name of the operator does not tell two implementations apart, of two processes."""
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("frac", lambda x: x - torch.trunc(x), "CPU")
        with torch.no_grad():
            assert refused(plain, base()) == "an operator of torch's that the program has replaced"
    finally:
        library._destroy()


def test_another_function_in_a_place_of_magpys(monkeypatch):
    monkeypatch.setattr(choices, "choose", lambda what, make: next(iter(make())))
    assert refused(plain, base()) == "magpy.choices.choose is replaced"


def test_a_generator_among_the_arguments():
    generator = torch.Generator().manual_seed(1)
    assert "Generator" in refused(lambda x: x + torch.rand(4, generator=generator), base())


def test_a_functions_defaults_that_were_changed(monkeypatch):
    usual = key(lambda x: F.softmax(x, 1), base())
    monkeypatch.setattr(F.softmax, "__defaults__", (None, 4, None))
    assert key(lambda x: F.softmax(x, 1), base()) != usual


def test_constants_made_of_weights():
    model = torch.nn.Linear(4, 4).eval()
    with torch.no_grad():
        assert refused(model, base(), freezing=True).startswith("freezing")


def test_the_report_says_what_became_of_it():
    with torch.no_grad():
        for outcome in ("kept in the cache", "found in the cache"):
            torch.compiler.reset()
            assert f"lowered graph: {outcome}" in str(magpy.explain(plain, base()))
        generator = torch.Generator()
        report = str(magpy.explain(lambda x: x + torch.rand(4, generator=generator), base()))
        assert "lowered graph: not kept: a constant of type Generator" in report


# -- What is on disk --------------------------------------------------------------------------------------------------


def spoilt_results(cache, spoil):
    """The counts of a run that meets a file that `spoil` has changed."""
    with torch.no_grad():
        compiled(plain, base())
        (path,) = cache.glob("*.graph")
        spoil(path)
        magpy.reset()
        assert_same(compiled(plain, base()), base() * 2)
    return counted()


def rewritten(change):
    """A file whose content is another, with a right checksum."""

    def spoil(path):
        content = json.loads(_C.cached_graph(path.stem))
        change(content)
        path.unlink()
        assert _C.keep_graph(path.stem, json.dumps(content).encode())

    return spoil


SPOILT = {
    "a bit": lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]),
    "its end": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "all": lambda p: p.write_bytes(b""),
    "the file of another program": lambda p: p.write_bytes(p.read_bytes().replace(b"mul", b"add")),
    "others may write": lambda p: p.chmod(0o622),
    "a link": lambda p: (p.rename(p.with_suffix(".x")), p.symlink_to(p.with_suffix(".x"))),
    "its form": rewritten(lambda content: content.pop("mutated")),
    "an operator that there is not": rewritten(lambda c: c["graph"]["nodes"][0].__setitem__(0, "aten.nothing.default")),
    "an operator of others": rewritten(lambda c: c["graph"]["nodes"][0].__setitem__(0, "os.system.default")),
    "choices that were not made": rewritten(lambda content: content["choices"].update({"another": "own"})),
}


@pytest.mark.parametrize("part", SPOILT)
def test_what_is_damaged_or_foreign_is_made_again(part, cache):
    found = spoilt_results(cache, SPOILT[part])
    assert found["hits"] == 0 and found["misses"] == 1 and found["kept"] == 1


def test_without_a_private_directory_nothing_is_kept(cache):
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    with torch.no_grad():
        assert_same(compiled(plain, base()), base() * 2)
    assert not names(cache) and counted()["kept"] == 0


def test_files_are_private(cache):
    with torch.no_grad():
        compiled(plain, base())
    (path,) = cache.glob("*.graph")
    assert path.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[0-9a-f]{32}\.graph", path.name)
    assert not list(cache.glob("*.tmp*"))


def test_the_directory_stays_within_its_limit(cache, monkeypatch):
    monkeypatch.setenv("MAGPY_CACHE_LIMIT", "0")
    with torch.no_grad():
        compiled(plain, base())
        compiled(lambda x: x * 3, base())
    assert len(names(cache)) == 1
