"""The log of a training: losses and a method's own numbers, and the check that losses are finite."""

import torch
from torch import Tensor, nn

from ciss import distributed
from ciss.documents import counted

UNWEIGHTED = ("cross_entropy", "compensated")  # losses without a coefficient
CHECK_EVERY = 50  # batches; each check waits for the device


class DivergenceError(Exception):
    """A loss or weight is not finite. The message gives the terms and the images."""


class LossLog:
    """Collects losses and logs on the device, and checks every `CHECK_EVERY` batches that the losses are finite.

    Args:
        run: name of the run, for the message.
    """

    def __init__(self, run: str = "a run"):
        self.run = run
        self.names: list[str] = []  # of the losses
        self.logs: list[str] = []  # names of the method's own numbers
        self.unchecked: list[Tensor] = []  # one row per batch, on the device
        self.ids: list[list[str]] = []  # image ids of the unchecked batches
        self.checked: list[Tensor] = []  # on the CPU

    def add(self, losses: dict[str, Tensor], ids: list[str], logs: dict[str, Tensor] | None = None) -> None:
        """Adds a batch. All batches of an epoch have the same names. Logs may be NaN. Raises DivergenceError."""
        self.names = list(losses)
        self.logs = list(logs or {})
        values = [*losses.values(), *(logs or {}).values()]
        self.unchecked.append(torch.stack([value.detach().float() for value in values]))
        self.ids.append(ids)
        if len(self.unchecked) >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Raises DivergenceError for the first batch with a loss that is not finite."""
        if not self.unchecked:
            return
        rows = torch.stack(self.unchecked).cpu()
        losses = rows[:, : len(self.names)]
        bad = (~losses.isfinite()).any(dim=1).nonzero()
        if len(bad):
            first = int(bad[0, 0])
            values = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.names, losses[first].tolist(), strict=True))
            batch = sum(len(earlier) for earlier in self.checked) + first + 1
            history = torch.cat([*self.checked, rows])[:batch, : len(self.names)]
            batches = counted(batch, "batch", "batches")
            raise DivergenceError(
                f"{self.run}: the loss is not finite after {batches} of this epoch: {values}. "
                f"Images: {', '.join(self.ids[first])}. The last finished epoch is kept. "
                f"{self._remedy(history)}"
            )
        self.checked.append(rows)
        self.unchecked = []
        self.ids = []

    def _remedy(self, losses: Tensor) -> str:
        """What to change after losses (batches, terms) whose last batch is not finite.

        Names the term that was largest in the batch before, or in the first batch the first one that is not finite.
        """
        if len(losses) > 1:
            cause = self.names[int(losses[-2].argmax())]
            history = f"The largest loss of the batch before was {cause}, {losses[-2].max():.4g}. "
            coefficients = "its coefficient"
        else:
            cause = self.names[int((~losses[-1].isfinite()).int().argmax())]
            history = ""
            coefficients = f"the coefficient of {cause}"
        if cause in UNWEIGHTED:
            return f"{history}Lower train.*.lr, or check the images."
        if cause == "pod":
            coefficients = "the coefficients pod and pod_outputs"
        return f"{history}Lower {coefficients} under `methods` or train.*.lr, or check the images."

    def epoch_means(self, network: nn.Module) -> tuple[dict[str, float], dict]:
        """Ends an epoch. Raises DivergenceError, also for weights that are not finite.

        Returns: means over the batches of all processes, without NaN; and of this process `columns`, losses first, and
        `values` (batches, columns).
        """
        self.check()
        # No loss of this epoch shows the weights after its last update.
        broken = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise DivergenceError(
                f"the losses are finite, but weights are not after this epoch: {broken[0]}{more}. "
                "The last finished epoch is kept. Lower train.*.lr."
            )
        rows = torch.cat(self.checked)
        self.checked = []
        sums = rows.double().nansum(dim=0)
        counts = (~rows.isnan()).sum(dim=0).double()
        sums, counts = distributed.total(torch.stack([sums, counts]))
        values = zip(counts.tolist(), (sums / counts).tolist(), strict=True)
        means = [None if count == 0 else value for count, value in values]
        columns = [*(f"loss/{name}" for name in self.names), *self.logs]
        row = {"loss": sum(means[: len(self.names)]), **dict(zip(columns, means, strict=True))}
        return row, {"columns": columns, "values": rows}
