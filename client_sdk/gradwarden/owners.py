"""Which optimizers own watched parameters: those given, those found, and their heirs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwarden.layout import BackwardOrder, Rows
from gradwarden.owner import Owner, inner, size_of

IDLE = 256
"""Captures of others after which an optimizer does not count the steps any more: a GAN's critic
may be trained for a hundred between two of the generator's, or for a whole phase."""


class Owners:
    """The rows of a model at this moment and the optimizers that hold them."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.model = model
        self.rows = Rows(model)
        self.order: BackwardOrder | None = BackwardOrder(self.rows)
        self._named = [Owner(k, o, self.rows) for k, o in enumerate(map(inner, optimizers))]
        self._anyone = None if self._named else Owner(0, None, self.rows)
        self._former: set[int] = set()
        """Ids of the parameters that were watched before the last renewal."""
        self._foreign: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def all(self) -> list[Owner]:
        """Every owner, and the one who stands for optimizers not seen yet."""
        return [*self._named, *([self._anyone] if self._anyone is not None else [])]

    def leads(self, owner: Owner) -> bool:
        """Whether this optimizer counts the steps: the first one that is at work."""
        at_work = (o for o in self._named if o.rows and not o.gone and o.idle < IDLE)
        return owner is self._anyone or owner is next(at_work, self._named[0])

    def took(self, owner: Owner) -> None:
        """Gradients of this one were taken: it is at work, the others wait."""
        for other in self._named:
            other.idle += 1
        owner.idle = 0
        owner.seen = True

    def begins(self, owner: Owner) -> bool:
        """Whether a first capture is the next step's: what thawed steps before the one that leads.

        Gradients that came since another's capture tell; a GAN's residue does too, but what it
        is trained by was there from the first.
        """
        if owner.seen or not self._former or any(id(p) in self._former for _, p in owner.rows):
            return False
        return any(o.seen and o.fresh() for o in self.all() if o is not owner)

    def of(self, optimizer: Optimizer) -> Owner | None:
        """The known owner behind an optimizer."""
        for owner in self._named:
            if owner.optimizer is not None and owner.optimizer() is optimizer:
                return owner
        return None

    def find(self, optimizer: Optimizer, within: Sequence[Optimizer] = ()) -> Owner | None:
        """The owner behind an optimizer, made now if it is new and holds watched parameters.

        ``within`` are optimizers whose step is running around this one's.
        """
        known = self.of(optimizer)
        if known is not None or optimizer in self._foreign:
            return known
        if self.replaced():  # by a new head, or by a checkpoint that was loaded by assignment
            self.renew()
        owner = Owner(len(self._named), optimizer, self.rows)
        if not owner.rows:
            self._foreign.add(optimizer)
            return None
        outer = (self.of(o) for o in within)
        if any(o is not None and o.numbers & owner.numbers for o in outer):
            return None  # a step inside another's, over the same parameters
        heir = self._heir(owner)
        if heir is not None:
            heir.succeed(optimizer, self.rows)
            return heir
        if self._anyone is not None:  # it is the first one seen: a clip came before its step
            owner.pending, owner.token = self._anyone.pending, self._anyone.token
            self._anyone = None
        self._named.append(owner)
        return owner

    def holding(self, gradients: list[Tensor]) -> list[Owner]:
        """Whose gradients these are; of optimizers that share some, who holds them all."""
        given = {id(g) for g in gradients}
        counts = [(o, o.count(given)) for o in self.all()]
        whole = [o for o, n in counts if n == len(gradients)]
        some = whole or [o for o, n in counts if n]
        return [o for o in some if not o.gone] or some

    def cleared_by(self, who: Optimizer | nn.Module) -> list[Owner]:
        """Whose gradients a ``zero_grad`` of this optimizer or module clears."""
        if isinstance(who, Optimizer):
            named = [o for o in self._named if o.optimizer is not None and o.optimizer() is who]
            return named or ([self._anyone] if self._anyone is not None else [])
        theirs = {id(p) for p in who.parameters()}
        return [o for o in self.all() if o.rows and id(o.rows[0][1]) in theirs]

    def stale(self, owner: Owner) -> bool:
        """Whether parameters were frozen, unfrozen, replaced or added since."""
        optimizer = owner.optimizer() if owner.optimizer is not None else None
        return self.rows.changed() or owner.size != size_of(optimizer)

    def replaced(self) -> bool:
        """Whether the model's trainable parameters are other objects than our rows."""
        now = [id(p) for p in self.model.parameters() if p.requires_grad]
        return now != [id(p) for p in self.rows.parameters]

    def renew(self) -> None:
        """Walk the model again; the order of its backward pass is learnt anew."""
        if self.order is not None:
            self.order.finish()
        self._former = set(self.rows.row)
        self.rows = Rows(self.model)
        self.order = BackwardOrder(self.rows)
        self._foreign.clear()  # what it holds may have thawed
        for known in self.all():
            known.assign(self.rows)

    def _heir(self, new: Owner) -> Owner | None:
        """Whose place a new optimizer takes: that of one it covers, or of one that is gone.

        Loops make their optimizer anew to change its kind, to thaw or to replace parameters;
        a scheduler may hold the old one, which is as good as gone if all it holds was replaced.
        """
        covered = (o for o in self._named if o.rows and o.numbers <= new.numbers)
        shared = (o for o in self._named if o.gone and o.numbers & new.numbers)
        gone = (o for o in self._named if o.gone or o.bereft)
        return next((o for held in (covered, shared, gone) for o in held), None)
