"""What is seen of a training while it runs: losses and a method's own numbers, and whether they are still finite."""

import torch
from torch import Tensor, nn

from ciss import distributed

UNWEIGHTED = ("cross_entropy", "compensated")  # losses without a coefficient
CHECK_EVERY = 50  # batches between two looks: looking waits for the device


class DivergenceError(Exception):
    """A loss or weight that is not a finite number; the message gives the terms and the images."""


class Watch:
    """Collects losses and logs on the device and looks at them now and then. `run`: whose they are, for the message."""

    def __init__(self, run: str = "a run"):
        self.run = run
        self.terms: list[Tensor] = []
        self.rows: list[Tensor] = []  # those looked at
        self.ids: list[list[str]] = []
        self.names: list[str] = []
        self.logs: list[str] = []

    def see(self, losses: dict[str, Tensor], ids: list[str], logs: dict[str, Tensor] | None = None) -> None:
        """Notes a batch. All batches of an epoch have the same losses and logs; a log may be NaN, a loss may not."""
        self.names, self.logs = list(losses), list(logs or {})
        values = [*losses.values(), *(logs or {}).values()]
        self.terms.append(torch.stack([value.detach().float() for value in values]))
        self.ids.append(ids)
        if len(self.terms) >= CHECK_EVERY:
            self.look()

    def look(self) -> None:
        """Raises DivergenceError for the first batch with a loss that is not finite."""
        if not self.terms:
            return
        terms = torch.stack(self.terms).cpu()
        losses = terms[:, : len(self.names)]
        bad = (~losses.isfinite()).any(dim=1).nonzero()
        if len(bad):
            first = int(bad[0, 0])
            values = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.names, losses[first].tolist(), strict=True))
            batch = sum(len(rows) for rows in self.rows) + first + 1
            raise DivergenceError(
                f"{self.run}: the loss is not finite after {batch} batches of this epoch: {values}. "
                f"Images: {', '.join(self.ids[first])}. The last finished epoch is kept. "
                f"{self._remedy(torch.cat([*self.rows, terms])[:batch, : len(self.names)])}"
            )
        self.rows.append(terms)
        self.terms, self.ids = [], []

    def _remedy(self, losses: Tensor) -> str:
        """What to change after losses (batches, terms), of which the last batch's are the first that are not finite.

        The cause is the term that was the largest in the batch before, or the first broken one of the first batch.
        """
        if len(losses) > 1:
            cause = self.names[int(losses[-2].argmax())]
            history = f"The largest loss of the batch before was {cause}, {losses[-2].max():.4g}. "
        else:
            cause, history = self.names[int((~losses[-1].isfinite()).int().argmax())], ""
        if cause in UNWEIGHTED:
            return f"{history}Lower train.*.lr, or look at these images."
        coefficients = "the coefficients pod and pod_outputs" if cause == "pod" else f"the coefficient of {cause}"
        return f"{history}Lower {coefficients} under `methods` or train.*.lr, or look at these images."

    def epoch(self, network: nn.Module) -> tuple[dict[str, float], dict]:
        """Means of the epoch over all processes, and this process's own numbers: `columns`, losses first, and `values`
        (batches, columns). Then a fresh start.

        Logs that are NaN are left out of their mean. Raises DivergenceError also for broken weights.
        """
        self.look()
        # the last update of an epoch is seen by no loss
        broken = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
        if broken:
            raise DivergenceError(
                f"the losses are finite, but {len(broken)} weights are not after this epoch, {broken[0]} first. "
                "The last finished epoch is kept. Lower train.*.lr."
            )
        rows = torch.cat(self.rows)
        sums, counts = rows.double().nansum(dim=0), (~rows.isnan()).sum(dim=0).double()
        sums, counts = distributed.total(torch.stack([sums, counts]))
        means = [None if n == 0 else value for n, value in zip(counts.tolist(), (sums / counts).tolist(), strict=True)]
        self.rows = []
        columns = [*(f"loss/{name}" for name in self.names), *self.logs]
        means_by_name = dict(zip(columns, means, strict=True))
        return {"loss": sum(means[: len(self.names)]), **means_by_name}, {"columns": columns, "values": rows}
