"""The engine: hears each step, says this rank's word, and acts with all ranks together."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

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

    The session's calls come on every step of every rank, whatever the capture does (paused,
    throttled, turned off by a fault): a rank that falls silent costs the others ``timeout``.
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
        self._step = self._since = 0

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
        self._put_all_back()
        if self._active:
            self._off = "the watch ended"
            self._farewell()

    def forget(self) -> None:
        """In a forked child: never act again."""
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
        lets the guard look by itself. False means that the gradients are held back (hidden
        until :meth:`after_step`), so the optimizer does nothing: the step was skipped.
        A step with a closure is not announced here: its gradients do not exist yet, and the
        guard's own hook on the optimizer judges them when they do.
        """
        if not self._active:
            return True
        self._held.pop(id(optimizer), None)  # of a step that raised: they are the past
        self._step = step
        return self._safely(self._judge, optimizer, step, nonfinite) is not False

    def after_step(self, optimizer: Optimizer) -> bool:
        """Put held back gradients back; False if they were, so nothing was applied."""
        lent = self._lent.pop(id(optimizer), None)
        if lent is not None:
            holding.take_flag_back(lent)
        held = self._held.pop(id(optimizer), None)
        if held is not None:
            held.release()
        return held is None

    def step_ended(self, step: int) -> None:
        """The boundary: all ranks act here on the word of two steps ago.

        Called once per step, right after the leading optimizer's step or its skip by a
        scaler. Checkpoints are saved and restored at this very place of the loop, so what the
        loop does between here and the next step (schedulers) follows a restore as it
        followed the save.
        """
        if self._active:
            self._step = step
            self._safely(self._boundary, step)

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
        if policy == "skip_step":
            self._tell("skip_step", f"a gradient was NaN or Inf at step {step}", step, True)
        return False

    def _suits(self, optimizer: Optimizer) -> bool:
        """Before its first step: parameters may have been moved or sharded since ``bind``."""
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
        self._put_all_back()
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

    def _put_all_back(self) -> None:
        for lent in self._lent.values():
            holding.take_flag_back(lent)
        for held in self._held.values():
            held.release()
        self._lent.clear()
        self._held.clear()

    # -- whom it guards -------------------------------------------------------------------

    @property
    def _flagged(self) -> bool:
        """Whether findings come late, from a device: then ranks may say them a step apart."""
        waits = self._guard.sync
        return not waits and any(holding.devices(o) - {"cpu"} for o in self._optimizers)

    def _meet(self, optimizer: Optimizer) -> None:
        """Hear its closures too, whose gradients no one else sees in time."""
        self._met.add(optimizer)
        hook = holding.Closures(self._closure_done)
        self._hooks.append(optimizer.register_step_pre_hook(hook))

    def _closure_done(self, optimizer: Optimizer) -> None:
        self.before_step(optimizer, self._step + 1)
