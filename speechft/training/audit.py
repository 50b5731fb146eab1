"""The gradient audit: a tensor that should be trained and is not stops the run, by name.

Adapters on modules whose code reads raw weights, heads that were never called and detached
branches all train nothing, and nothing says so: the loss goes down all the same.
"""

from __future__ import annotations

from torch import nn

from speechft.errors import NoGradientError

# Softmax is blind to what is added to every key alike, so the gradient of this bias is rounding
# noise around zero, and exactly zero now and then.
_MAY_BE_ZERO = ("k_proj.bias",)


class GradientAudit:
    """Look at every trainable tensor's gradient after the first backward passes.

    Call it after each backward, before the update. A gradient that is missing is an error at
    once. One that is all zeros is an error after ``patience`` passes, as some tensors (the first
    factor of a LoRA pair, which starts behind a zero) rightly get zeros at first. Then it does
    nothing more, so that it costs the later steps nothing.
    """

    def __init__(self, module: nn.Module, *, patience: int = 3) -> None:
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.patience = patience
        self.passes = 0
        self.zero = {name for name in self.parameters if not name.endswith(_MAY_BE_ZERO)}

    def __call__(self) -> None:
        """Audit one backward pass.

        Raises:
            NoGradientError: with the names of the tensors that get no gradient.
        """
        if self.passes >= self.patience:
            return
        self.passes += 1
        missing = [name for name, p in self.parameters.items() if p.grad is None]
        if missing:
            raise NoGradientError(missing, self._message(missing, "got no gradient"))
        for name in list(self.zero):
            grad = self.parameters[name].grad
            if grad is not None and bool(grad.any()):
                self.zero.discard(name)
        if self.passes == self.patience and self.zero:
            zero = [name for name in self.parameters if name in self.zero]
            raise NoGradientError(
                zero, self._message(zero, f"got only zeros in {self.patience} backward passes")
            )

    def _message(self, names: list[str], what: str) -> str:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return (
            f"{len(names)} of {len(self.parameters)} trainable tensors {what}: {shown}. They would "
            "never change; freeze them, or mend what keeps them out of the loss."
        )
