"""The engine: hears each step, says this rank's word, and acts with all ranks together."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradwarden import hooks
from gradwarden.collect import Collector, Pending
from gradwarden.errors import ConfigurationError, Faults, say
from gradwarden.guard import flags, holding
from gradwarden.guard.agreement import Agreement, Lost, agree
from gradwarden.guard.checkpoints import Ledger
from gradwarden.guard.decision import QUIET, Act, Cause, Decider, Word
from gradwarden.guard.options import Guard, Halted
from gradwarden.guard.shelf import Shelf
from gradwarden.identity import place
from gradwarden.owner import inner


class Keeper:
    """Carries out one Guard for one watched run. Only ``raise_if_halted`` raises, if chosen.

    It hears its optimizers by hooks of its own, whatever the capture does (paused, turned off
    by a fault), since a rank that fell silent would cost the others ``timeout``. What the
    session tells spares it a second look at the gradients and gives steps their numbers.
    """

    def __init__(
        self,
        guard: Guard,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        faults: Faults,
        report: Callable[[dict[str, Any]], None],
        rewound: Callable[[int], None],
        ledger: Ledger,
    ) -> None:
        """``report`` takes events; ``rewound(step)`` opens a new attempt after ``step``."""
        self._guard, self._faults = guard, faults
        self._optimizers = [inner(o) for o in optimizers]
        self._report, self._rewound, self._ledger = report, rewound, ledger
        self._shelf = Shelf(guard, model, ledger, report)
        self._agreement, self._decider = Agreement(), Decider(guard)
        self._collector = Collector(64)
        self._flags: deque[Pending] = deque()
        self._held: dict[int, holding.Held] = {}
        self._lent: dict[int, Optimizer] = {}
        self._hooks: list[Any] = []
        self._met: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._judged: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._own, self._asked = QUIET, ""
        self._off, self._halted = "not bound", ""
        self._begun = self._broken = self._raised = False
        self._leader = weakref.ref(self._optimizers[0]) if self._optimizers else lambda: None
        self._skipped: set[int] = set()
        self._announced = self._told = False
        self._step, self._done, self._since = -1, -2, 0

    # -- the beginning and the end --------------------------------------------------------

    def bind(self) -> None:
        """Check the guard against model, optimizers and ranks; make the guard's process group.

        Every rank of the default process group must call it, as ``watch(guard=)`` does.

        Raises:
            ConfigurationError: the guard cannot do here what it is asked to, with the remedy.
        """
        here = place()
        if not self._optimizers:
            raise ConfigurationError("guard: give the optimizer too: watch(model, optimizer, ...)")
        if here.world > 1 and not here.distributed:
            raise ConfigurationError(
                f"guard: one of {here.world} ranks, but no process group: "
                "call torch.distributed.init_process_group() before watch(guard=)"
            )
        for optimizer in self._optimizers:
            reason = holding.unsuitable(self._guard, optimizer, here.world)
            if reason:
                raise ConfigurationError(f"guard: {reason}")
        chosen = {f.name: getattr(self._guard, f.name) for f in fields(self._guard)}
        said = repr({k: v for k, v in chosen.items() if k not in ("save", "restore")})
        self._agreement = agree(self._guard.timeout, said)
        self._decider = Decider(self._guard, self._agreement.rank)
        self._off = ""
        for optimizer in self._optimizers:
            self._meet(optimizer)

    def stop(self) -> None:
        """The watch ends: undo what was installed, and let other ranks know."""
        while self._hooks:
            self._hooks.pop().remove()
        if self._active:
            self._off = "the watch ended"
            self._farewell()

    def forget(self) -> None:
        """In a forked child."""
        self._off = "forked"

    def status(self) -> str:
        """``on``, or why not, for the start event."""
        if self._halted:
            return f"halted: {self._halted}"
        return f"off: {self._off}" if self._off else "on"

    # -- what the session tells -----------------------------------------------------------

    def before_step(
        self, optimizer: Optimizer, step: int, nonfinite: bool | Tensor | None = None
    ) -> bool:
        """Judge the gradients that ``optimizer`` is about to apply in ``step``.

        ``nonfinite``: the verdict on the host, or one float32 on the device (1.0: bad); None
        lets the guard look by itself. False means that the gradients are held back, hidden
        until the optimizer is done, so it does nothing: the step is skipped. A step with a
        closure is not announced here: its gradients do not exist yet.
        """
        self._announced = True
        self._step, self._told = step, True
        return self._before(optimizer, nonfinite)

    def after_step(self, optimizer: Optimizer) -> bool:
        """Whether what the optimizer was given was applied, or False for a step held back."""
        return id(optimizer) not in self._skipped

    def step_ended(self, step: int) -> None:
        """The number of the step that ends, at its optimizer's step or its skip by a scaler."""
        if not self._active or step == self._done:
            return
        self._step, self._told = step, True
        leader = self._leader()
        if leader is None or hooks.calls(leader)[0] == 0:  # skipped: the optimizer never steps
            self._end_step()

    def request_halt(self, reason: str) -> None:
        """Halt all ranks at a coming boundary; from any thread, at any moment."""
        self._asked = self._asked or reason or "no reason given"

    @property
    def should_stop(self) -> bool:
        """Whether the guard halted; the same answer on all ranks after the same step."""
        return bool(self._halted)

    def raise_if_halted(self) -> None:
        """Raise ``Halted`` once, if the guard halted and was told to raise."""
        if self._halted and self._guard.raise_on_halt and not self._raised:
            self._raised = True
            raise Halted(self._halted)

    # -- one step -------------------------------------------------------------------------

    @property
    def _active(self) -> bool:
        return not (self._off or self._halted)

    def _enters(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a step of ours, and after the session heard of it."""
        announced, self._announced = self._announced, False
        if not self._active or hooks.calls(optimizer)[0] > 1:
            return None
        told = holding.tell_closure(args, kwargs, lambda: self._before(optimizer, None))
        if told is None and not announced:
            self._before(optimizer, None)
        return told

    def _leaves(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """After it, and before the session hears of that: it finds the gradients in place."""
        if hooks.calls(optimizer)[0] <= 1:
            self._put_back(optimizer)

    def _ends(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """After all that others do about the leading optimizer's step."""
        if optimizer is self._leader() and self._active and hooks.calls(optimizer)[0] <= 1:
            self._end_step()
            self.raise_if_halted()

    def _number(self) -> int:
        """The step in progress; counted on where nobody tells."""
        return self._step if self._told else self._step + 1

    def _before(self, optimizer: Optimizer, nonfinite: bool | Tensor | None) -> bool:
        if not self._active or holding.capturing_graph():
            return True
        self._skipped.discard(id(optimizer))
        self._held.pop(id(optimizer), None)  # of a step that raised: they are the past
        return self._safely(self._judge, optimizer, self._number(), nonfinite) is not False

    def _put_back(self, optimizer: Optimizer) -> None:
        if self._lent.pop(id(optimizer), None) is not None:
            holding.take_flag_back(optimizer)
        held = self._held.pop(id(optimizer), None)
        if held is not None:
            held.release()

    def _end_step(self) -> None:
        """The boundary: all ranks act here on the word of two steps ago.

        Checkpoints are saved and restored at this very place of the loop, so what it does from
        here to the next step (schedulers) follows a restore as it followed the save.
        """
        self._step = self._done = self._number()
        self._told = False
        if not holding.capturing_graph():
            self._safely(self._boundary, self._step)

    def _judge(self, optimizer: Optimizer, step: int, nonfinite: bool | Tensor | None) -> bool:
        policy = self._guard.on_nonfinite
        if optimizer not in self._judged and not self._suits(optimizer):
            return True
        if not self._begun:
            self._begun = True
            if policy == "rollback":  # a state to go back to while nothing else is healthy
                self._shelf.save(step - 1, first=True)
        if policy is None or holding.scaled(optimizer):  # a scaler skips by itself
            return True
        verdict = flags.of_gradients(optimizer) if nonfinite is None else nonfinite
        if isinstance(verdict, Tensor):
            if verdict.device.type != "cpu" and not self._guard.sync:
                self._later(optimizer, verdict)
                return True
            verdict = bool(verdict)
        if self._guard.sync and policy == "skip_step":
            verdict = self._agreement.any(verdict)
        if not verdict:
            return True
        self._found()
        # A shard held back alone would part the ranks: they halt or go back together instead.
        if policy != "skip_step" and not self._agreement.alone and holding.sharded(optimizer):
            return True
        self._held[id(optimizer)] = holding.Held(optimizer)
        self._skipped.add(id(optimizer))
        if policy == "skip_step":
            self._tell("skip_step", f"a gradient was NaN or Inf at step {step}", step, True)
        return False

    def _suits(self, optimizer: Optimizer) -> bool:
        """Before its first step: parameters may have been moved or sharded since ``bind``."""
        if not self._judged:  # now, so that whoever else hears the end of a step hears it first
            self._hooks.append(register_optimizer_step_post_hook(holding.eager(self._ends)))
        self._judged.add(optimizer)
        if optimizer not in self._met:
            self._meet(optimizer)
        reason = holding.unsuitable(self._guard, optimizer, self._agreement.world)
        if reason:
            self._turn_off(reason)
            self._farewell()
        return not reason

    def _later(self, optimizer: Optimizer, flag: Tensor) -> None:
        """On a device nobody waits: the flag is read when it has come."""
        pending = self._collector.fetch(flag)
        if pending is not None:
            self._flags.append(pending)
        if self._guard.on_nonfinite == "skip_step":
            holding.lend_flag(optimizer, flag)
            self._lent[id(optimizer)] = optimizer

    def _found(self) -> None:
        finding = self._decider.finding()
        if finding.act > self._own.act:
            self._own = finding

    def _boundary(self, step: int) -> None:
        while self._flags and self._flags[0].ready:
            if float(self._flags.popleft().take()) > 0:
                self._found()
                if self._guard.on_nonfinite == "skip_step":
                    self._tell("skip_step", f"a gradient was NaN or Inf before {step}", step, True)
        talk = self._agreement
        if talk.alone:
            talk.say(step, self._word())
        heard = talk.hear()
        if heard is not None and self._act(*heard):
            talk.void()
            return
        if not talk.alone:
            talk.say(step, self._word())
        if self._guard.on_nonfinite == "rollback":
            self._save_in_turn(step)

    def _save_in_turn(self, step: int) -> None:
        first = not self._begun  # a scaler kept the first steps from the optimizer
        self._begun = True
        self._since += 1
        if first or self._since >= self._guard.checkpoint_every:
            self._since = 0
            self._shelf.save(step, first)

    def _word(self) -> Word:
        """This rank's last word on the step that ends."""
        rank = self._agreement.rank
        word, self._own = self._own, QUIET
        if self._asked:
            word = Word(Act.HALT, Cause.REQUESTED, rank)
        elif self._broken:
            word = Word(Act.OFF, Cause.FAULT, rank)
        self._ledger.step_ended(word.act is Act.NONE)
        return word

    # -- actions --------------------------------------------------------------------------

    def _act(self, step: int, own: Word, joint: Word) -> bool:
        """Do what the joint word on ``step`` asks for; whether it was more than to go on."""
        if joint.act is Act.SKIPPED and own.act is Act.NONE and not self._flagged:
            self._own = Word(Act.HALT, Cause.DISAGREED, self._agreement.rank)
        act, more = self._decider.joined(own, joint)
        if act in (Act.NONE, Act.SKIPPED):
            return False
        reason = joint.reason(step, self._agreement.world) + more
        if joint.cause is Cause.REQUESTED and self._asked:
            reason = f"{reason}: {self._asked}"
        aloud = self._agreement.rank in (0, joint.rank)
        if act is Act.HALT:
            self._halt(reason, aloud)
        elif act is Act.OFF:
            self._turn_off(reason, aloud)
        else:
            self._roll_back(step, reason, aloud)
        return True

    def _halt(self, reason: str, aloud: bool = True) -> None:
        self._halted = reason
        self._tell("halt", reason, self._step, aloud)

    def _roll_back(self, found: int, reason: str, aloud: bool) -> None:
        entry, fault = self._shelf.restore(found, self._agreement)
        if entry is None:
            self._halt(f"{reason}; {fault}", aloud)
            return
        self._flags.clear()
        self._own, self._since = QUIET, 0
        where = {"to_step": entry.step, "path": str(entry.path)}
        self._tell("rollback", f"{reason}; back to {entry.path}", self._step, aloud, **where)
        self._rewound(entry.step)

    def _turn_off(self, reason: str, aloud: bool = True) -> None:
        """The guard ends, the training goes on."""
        self._off = reason
        self._tell("off", f"{reason}; training goes on unguarded", self._step, aloud)

    def _tell(self, action: str, reason: str, step: int, aloud: bool, **more: Any) -> None:
        self._report({"kind": "guard", "action": action, "step": step, "reason": reason, **more})
        if aloud:
            say(f"guard: {action.replace('_', ' ')} at step {step}: {reason}")

    # -- safety ---------------------------------------------------------------------------

    def _safely(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run a part of the guard: no failure of ours reaches the training, or parts the ranks."""
        try:
            with torch.no_grad():
                return work(*args)
        except Lost as error:
            self._turn_off(f"the ranks no longer agree: {error}")
            self._farewell()
        except Exception as error:
            self._faults.record("guard", error, fatal=False)
            if self._broken:  # it could not even say so
                self._turn_off("it failed again")
                self._farewell()
            self._broken = True
        return None

    def _farewell(self) -> None:
        """Best effort: the other ranks need not wait for a word that never comes."""
        if not self._agreement.alone:
            try:
                self._agreement.say(self._step, Word(Act.OFF, Cause.LEFT, self._agreement.rank))
            except Lost:
                return

    # -- whom it guards -------------------------------------------------------------------

    @property
    def _flagged(self) -> bool:
        """Whether findings come late, from a device: then ranks may say them a step apart."""
        waits = self._guard.sync
        return not waits and any(holding.devices(o) - {"cpu"} for o in self._optimizers)

    def _meet(self, optimizer: Optimizer) -> None:
        """Hear an optimizer: ours, or one that the loop made in the place of ours."""
        self._met.add(optimizer)
        leader = self._leader()
        if leader is None or holding.share(leader, optimizer):
            self._leader = weakref.ref(optimizer)
        self._hooks.append(optimizer.register_step_pre_hook(holding.eager(self._enters)))
        self._hooks.append(optimizer.register_step_post_hook(holding.eager(self._leaves)))
