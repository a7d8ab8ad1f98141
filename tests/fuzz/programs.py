"""Random programs: how one is drawn from its seed, how it reads as source, and how it is run beside eager."""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fuzz import grammar
from tests.fuzz.tree import Block, Grower
from tests.snapshot import Picture, difference, memory_of

TABLES = {**grammar.EXPRESSIONS, "S": grammar.STATEMENTS}
WORLD = [Path(__file__).with_name(name) for name in ("world_parts.py", "world.py")]
PROGRAM = "<random program>"
FILES = (PROGRAM, *map(str, WORLD))
SHOWN = "G rate log deaths table names buffer tick half cached defaults step x0 local meter registry fib s".split()
CLASSES = "State Base Child Child2 Loose Point Net Ranked Registered Rows Single Post".split()
GRADIENT_FUNCTION = re.compile(r"grad_fn=<\w+>")  # a frame below one that falls back is one function to autograd
LARGE = 2000  # elements of a tensor in the state that end a program: it would only grow

GLOBALS = "    global G, rate, log\n"
HEAD = GLOBALS + "    a, b, c, n, m, r, w, acc, d, fuel = x, y, x + 1, 1, 2, 0.5, 'a', [], {}, 8\n"
#: Where n, m, r, w and more can be given by the caller.
OPTIONS_HEAD = (
    GLOBALS + "    a, b, c, fuel = x, y if b is None else b, x + 1, 8\n"
    "    acc, d = [] if acc is None else acc, {} if d is None else d\n    if rest: acc.append(rest)\n"
)
TAIL = "    return acc, a, b, c, n, m, r, w, d\n"
#: How the body becomes something to compile: source around it, and the expression that names it.
TARGETS = {
    "function": ("def f(x, y, s):\n", "", "f"),
    "module": ("class Main(Net):\n  def forward(self, x, y, s):\n", "main = Main()\n", "main"),
    "method": ("class Owner:\n  def run(self, x, y, s):\n", "owner = Owner()\n", "owner.run"),
    "options": (
        "def f(x, y, s, n=1, m=2, r=0.5, w='a', *, b=None, acc=None, d=None, **rest):\n",
        "",
        "f",
    ),
    "closure": (
        "def make():\n  held, hold = torch.ones(3), 1\n  def f(x, y, s):\n"
        "    nonlocal hold\n    hold = (hold + 1) % 3\n    x = x + held\n",
        "  return f\nf = make()\n",
        "f",
    ),
}


@dataclass
class Call:
    """One call, and what is done from outside before it."""

    changes: list[str]
    x: str
    y: str
    around: str
    backward: bool
    more: str = ""  # arguments by keyword

    def text(self) -> str:
        lines = [*self.changes, f"# under {self.around or 'nothing'}, {'backward' if self.backward else 'no backward'}"]
        return "\n".join([*lines, f"target({self.x}, {self.y}, s{self.more and ', ' + self.more})"])


@dataclass
class Program:
    seed: int
    target: str
    body: Block
    calls: list[Call] = field(default_factory=list)

    def source(self) -> str:
        before, after, _ = TARGETS[self.target]
        indent = "    "
        head = OPTIONS_HEAD if self.target == "options" else HEAD
        return before + head + indent + self.body.text().replace("\n", "\n" + indent) + "\n" + TAIL + after

    def text(self) -> str:
        name = TARGETS[self.target][2]
        parts = [f"# seed {self.seed}", self.source(), f"target = {name}", *(call.text() for call in self.calls)]
        return "\n".join(parts)


def draw(seed: int) -> Program:
    """The program of a seed. What is not Python is drawn again."""
    choice = random.Random(seed)
    grower = Grower(choice, TABLES, grammar.LEAVES)
    while True:
        target = choice.choice(["function", "function", "options", "module", "method", "closure"])
        program = Program(seed, target, grower.block(choice.choice([1, 2, 3, 3, 4]), choice.choice([1, 2, 3, 5, 8])))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(program.source(), PROGRAM, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        break
    lasting = [choice.choice(grammar.ARGUMENTS) for _ in range(2)]
    around, backward = choice.choice(grammar.SURROUNDINGS), choice.random() < 0.3
    options = choice.sample(grammar.OPTIONS, choice.choice([0, 1, 2, 3])) if target == "options" else []
    names = {option.split("=")[0]: option for option in options}
    for k in range(choice.choice([4, 8, 12])):
        changes = [choice.choice(grammar.CHANGES) for _ in range(choice.choice([0, 0, 0, 0, 1, 2]))]
        if choice.random() < 0.15:
            lasting[choice.randrange(2)] = choice.choice(grammar.ARGUMENTS)
        if choice.random() < 0.1:
            around = choice.choice(grammar.SURROUNDINGS)
        given = [option for option in names.values() if choice.random() < 0.9]
        more = ", ".join(option.replace("#", str(k)) for option in given)
        program.calls.append(Call(changes, lasting[0], lasting[1], around, backward, more))
    return program


# -- Running ----------------------------------------------------------------------------------------------------------


@torch.jit.script
def doubled(a: torch.Tensor) -> torch.Tensor:
    """A function of TorchScript's, which all worlds share: it takes long to make."""
    if a.numel() > 3:
        a = a + 1
    return a * 2


class Noting(TorchFunctionMode):
    """A torch function mode of the user's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class NotingAll(TorchDispatchMode):
    """A dispatch mode of the user's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Side:
    """One run of a program in a world of its own. wrap compiles the target, or not."""

    world: Any = ()
    over = False  # is what comes after the last call nothing that torch promises?

    def __init__(self, program: Program, wrap: Callable[[Any], Any]) -> None:
        if not Side.world:
            Side.world = [compile(part.read_text(), str(part), "exec", dont_inherit=True) for part in WORLD]
        self.space: dict[str, Any] = {"__name__": "world", "Noting": Noting, "NotingAll": NotingAll, "doubled": doubled}
        self.environ: str | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for part in Side.world:
                exec(part, self.space)
            source = program.source()
            linecache.cache[PROGRAM] = (len(source), None, source.splitlines(True), PROGRAM)
            exec(compile(source, PROGRAM, "exec", dont_inherit=True), self.space)
        self.space["x0"] = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
        self.target = wrap(eval(TARGETS[program.target][2], self.space))

    def call(self, call: Call) -> Any:
        """Make the changes and the call: a picture of what can be seen afterwards, or None where that is too much."""
        if self.environ is None:
            os.environ.pop("MAGPY_FUZZ", None)
        else:
            os.environ["MAGPY_FUZZ"] = self.environ
        torch.default_generator.manual_seed(len(call.changes))
        random.seed(len(call.changes))
        for line in call.changes:
            with contextlib.suppress(Exception):
                exec(line, self.space)
        torch.default_generator.manual_seed(len(call.changes))
        random.seed(len(call.changes))
        try:
            args = [eval(text, self.space) for text in (call.x, call.y)]
            more = eval(f"dict({call.more})", self.space)
            around = eval(call.around, self.space) if call.around else contextlib.nullcontext()
        except Exception:
            return ()
        printed = io.StringIO()
        error: BaseException | None = None
        result: Any = None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), around:
            try:
                result = self.target(*args, self.space["s"], **more)
            except Exception as raised:
                error = raised
                if "modified by an inplace operation" in str(raised):  # the text names the tensor that was met first
                    error = RuntimeError("modified by an inplace operation")
        after = (hash(memory_of(torch.default_generator.get_state())), hash(random.getstate()))
        differentiated = backward(result) if call.backward else None
        # A traceback keeps the frames of the call alive, which the program would see: it ends with the picture.
        picture = Picture(FILES)
        if isinstance(differentiated, str):  # which gradients it had accumulated when it raised depends on its order
            self.over = True
            return [("backward", differentiated)]
        seen = [
            ("backward", None),
            ("result", picture.of(result)),
            ("error", picture.of(error)),
            ("printed", picture.of(GRADIENT_FUNCTION.sub("grad_fn", printed.getvalue()))),
            ("environ", os.environ.get("MAGPY_FUZZ")),
            ("random", after),
            ("arguments", picture.of([args, more])),
        ]
        self.environ = os.environ.get("MAGPY_FUZZ")
        for name in SHOWN:
            seen.append((name, picture.of(self.space.get(name))))
        for name in CLASSES:
            own = vars(self.space[name])
            seen.append((name, [(key, picture.of(own[key])) for key in own if not key.startswith("_")]))
        large = any(isinstance(each, torch.Tensor) and each.numel() > LARGE for each in picture.alive)
        if large or isinstance(error, RecursionError):  # how deep a program comes depends on who calls it
            return None
        if error is not None:
            error.__traceback__ = None
        return seen


def backward(result: Any) -> Any:
    """Differentiate what can be differentiated: None, or the exception's type."""
    found: list[torch.Tensor] = []

    def look(value: Any, depth: int = 0) -> None:
        if isinstance(value, torch.Tensor):
            if value.requires_grad and value.dtype.is_floating_point:
                found.append(value)
        elif isinstance(value, list | tuple) and depth < 5:
            for item in value:
                look(item, depth + 1)

    look(result)
    try:
        if found:
            torch.autograd.backward([t.sum() for t in found], [torch.ones((), dtype=t.dtype) for t in found])
    except Exception as error:
        return type(error).__name__
    return None


def compiled(target: Any) -> Any:
    return torch.compile(target, backend="magpy")


def differs(program: Program, wrap: Callable[[Any], Any] = compiled) -> str | None:
    """Run plain and compiled side by side: the first difference, or None. Torch's defaults are left as they were."""
    dtype = torch.get_default_dtype()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            eager, mine = Side(program, lambda target: target), Side(program, wrap)
            for i, call in enumerate(program.calls):
                torch.set_default_dtype(dtype)
                expected = eager.call(call)
                torch.set_default_dtype(dtype)
                actual = mine.call(call)
                if expected is None or actual is None:
                    return None
                for (name, a), (_, e) in zip(actual, expected, strict=False):
                    found = difference(a, e, name)
                    if found:
                        return f"call {i}: {found}"
                if eager.over:
                    return None
    finally:
        torch.set_default_dtype(dtype)
        os.environ.pop("MAGPY_FUZZ", None)
    return None


def failure(program: Program) -> str | None:
    """How compiled differs from eager, or None; also None where eager differs from itself."""
    found = differs(program)
    if found and any(differs(program, lambda target: target) for _ in range(3)):
        return None
    return found
