"""A recorder small enough to be trusted: what a run calls, as op lists for magpy.lower."""

import torch
from torch.overrides import TorchFunctionMode

from magpy import lower
from magpy.lower import Value


class Sketch(TorchFunctionMode):
    """Records every torch call as (func, args, kwargs, out, state, site), tensors as Values in order of first touch."""

    def __init__(self):
        super().__init__()
        self.ops, self.inputs, self.input_values = [], [], []
        self.index, self.keep = {}, []
        self.depth = 0

    def value(self, tensor, external):
        if id(tensor) not in self.index:
            self.index[id(tensor)] = len(self.keep)
            self.keep.append(tensor)
            if external:
                self.inputs.append(tensor)
                self.input_values.append(self.index[id(tensor)])
        return Value(self.index[id(tensor)])

    def template(self, x, external):
        if isinstance(x, torch.Tensor):
            return self.value(x, external)
        if isinstance(x, tuple):
            return tuple([self.template(i, external) for i in x])
        if isinstance(x, list):
            return [self.template(i, external) for i in x]
        if isinstance(x, dict):
            return {k: self.template(v, external) for k, v in x.items()}
        if isinstance(x, slice):
            return slice(*[self.template(i, external) for i in (x.start, x.stop, x.step)])
        return x

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args_template = self.template(tuple(args), True)
        kwargs_template = self.template(kwargs, True) if kwargs else None
        out = func(*args, **(kwargs or {}))
        state = func is torch._C._set_grad_enabled
        self.ops.append((func, args_template, kwargs_template, self.template(out, False), state, f"op {len(self.ops)}"))
        return out

    def call(self, func, *args):
        """A callable that the mode does not see, such as autograd.Function.apply."""
        args_template = self.template(tuple(args), True)
        with torch._C.DisableTorchFunction():
            out = func(*args)
        self.ops.append((func, args_template, None, self.template(out, False), False, "call"))
        return out


def flat(out):
    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, dict):
        return [t for v in out.values() for t in flat(v)]
    return [t for v in out for t in flat(v)] if isinstance(out, (list, tuple)) else []


class Run:
    """fn recorded on args and lowered; call it like fn, or look at `lowered`, `inputs`."""

    def __init__(self, fn, *args, sketch=None, **options):
        sketch = sketch or Sketch()
        seed = torch.random.get_rng_state()
        saved = {}
        with sketch:
            before = [t for t in flat(args)]
            saved = {id(t): (t, t.detach().clone()) for t in before}
            outs = flat(fn(*args))
        self.sketch = sketch
        torch.random.set_rng_state(seed)
        with torch.no_grad():
            for t, old in saved.values():
                t.copy_(old)
        self.inputs = sketch.inputs
        outputs = [sketch.value(o, True).index for o in outs]
        self.lowered = lower.lower(tuple(sketch.ops), self.inputs, sketch.input_values, outputs, options)

    @property
    def info(self):
        return self.lowered.info

    def __call__(self, inputs=None):
        """Run and commit, as dispatch does; returns the outputs."""
        inputs = self.inputs if inputs is None else inputs
        outs = self.lowered.runner(inputs)
        n = len(self.lowered.mutated)
        with torch.no_grad():
            for i, new in zip(self.lowered.mutated, outs[:n], strict=True):
                inputs[i].copy_(new)
        return list(outs[n:])
