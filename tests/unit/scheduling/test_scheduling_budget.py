"""Budgets: ``spent + held`` is never above the cap, in whatever order things happen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cadenza.base.resources import Gpu, Resources
from cadenza.protocol.objects import BudgetSpec
from cadenza.scheduling.budget import SLACK_S, STOP_MARGIN_S, Account, Prices

NEAR = 1e-6


def test_a_container_costs_by_its_requests() -> None:
    prices = Prices(cpu_core=2.0, memory_gib=1.0, gpus={"T4": 10.0})
    asked = Resources(cpu_milli=500, memory_mib=2048)
    assert prices.rate(asked, ()) == pytest.approx(3.0)
    assert prices.rate(asked, (Gpu("T4", 2),)) == pytest.approx(23.0)
    assert prices.rate(asked, (Gpu("L4"),)) == pytest.approx(3.0)


def test_what_is_not_used_comes_back() -> None:
    account = Account(BudgetSpec(container_s=100.0))
    assert account.start("ta-1", 0.0, 60.0, 0.0)
    assert not account.start("ta-2", 0.0, 60.0, 0.0)
    assert account.left_s == pytest.approx(100 - 60 - STOP_MARGIN_S)
    account.end("ta-1", 10.0)
    assert (account.spent_s, account.left_s) == (pytest.approx(10.0), pytest.approx(90.0))
    assert account.start("ta-2", 10.0, 60.0, 0.0)


def test_what_can_never_fit_is_refused_in_words() -> None:
    account = Account(BudgetSpec(container_s=100.0, money=5.0))
    assert account.refusal(100.0, 0.01) == ""
    assert "300 container-seconds" in account.refusal(300.0, 0.0)
    assert "may cost 10" in account.refusal(100.0, 0.1)
    assert Account(BudgetSpec()).refusal(1e9, 1e9) == ""


def test_a_container_is_extended_with_slack_only_where_there_is_plenty() -> None:
    plenty, scarce = Account(BudgetSpec(container_s=10_000.0)), Account(BudgetSpec(container_s=100.0))
    for account in (plenty, scarce):
        assert account.start("ta-1", 0.0, 10.0, 0.0)
        assert account.extend("ta-1", 40.0)
    assert plenty.holds["ta-1"].paid_until == 40.0 + STOP_MARGIN_S + SLACK_S
    assert scarce.holds["ta-1"].paid_until == 40.0 + STOP_MARGIN_S
    assert not scarce.extend("ta-1", 96.0)
    assert scarce.stop_at("ta-1") == 40.0


def test_time_beyond_what_was_paid_is_not_charged() -> None:
    account = Account(BudgetSpec(container_s=20.0))
    assert account.start("ta-1", 0.0, 10.0, 0.0)
    account.end("ta-1", 500.0)
    assert account.spent_s == 10.0 + STOP_MARGIN_S


class Machine(RuleBasedStateMachine):
    """Containers start, get work, fall idle and end in any order; each is gone by the time it is paid for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.number = 0
        self.account = Account(BudgetSpec(container_s=500.0, money=50.0))
        self.used_s = self.used_money = 0.0
        self.needed: dict[str, float] = {}
        """Until when what runs in a container may run at worst."""

    @rule(needs=st.floats(0.1, 300), rate=st.floats(0, 2))
    def start(self, needs: float, rate: float) -> None:
        self.number += 1
        if self.account.start(f"ta-{self.number}", self.now, needs, rate):
            self.needed[f"ta-{self.number}"] = self.now + needs

    @precondition(lambda self: self.account.holds)
    @rule(data=st.data(), timeout=st.floats(0.1, 400))
    def assign(self, data: st.DataObject, timeout: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.account.holds)))
        if self.account.extend(name, self.now + timeout):
            self.needed[name] = max(self.needed[name], self.now + timeout)

    @precondition(lambda self: self.account.holds)
    @rule(data=st.data())
    def idle(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.account.holds)))
        self.needed[name] = min(self.needed[name], self.now)
        self.account.shrink(name, self.now, self.now)

    @precondition(lambda self: self.account.holds)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self._gone(data.draw(st.sampled_from(sorted(self.account.holds))))

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        for name, hold in sorted(self.account.holds.items(), key=lambda one: one[1].paid_until):
            if hold.paid_until <= until:
                self.now = max(self.now, hold.paid_until)
                self._gone(name)
        self.now = until

    def _gone(self, name: str) -> None:
        hold = self.account.holds[name]
        took = self.now - hold.since
        self.used_s += took
        self.used_money += took * hold.rate
        self.account.end(name, self.now)
        del self.needed[name]

    @invariant()
    def never_above_the_cap(self) -> None:
        running_s = sum(self.now - one.since for one in self.account.holds.values())
        running = sum((self.now - one.since) * one.rate for one in self.account.holds.values())
        assert self.used_s + running_s <= 500.0 + NEAR
        assert self.used_money + running <= 50.0 + NEAR
        assert self.account.left_s >= -NEAR
        assert self.account.left_money >= -NEAR
        assert self.account.spent_s == pytest.approx(self.used_s)

    @invariant()
    def work_that_began_is_paid_to_its_end(self) -> None:
        for name, until in self.needed.items():
            assert self.account.stop_at(name) >= until - NEAR


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(needs=st.floats(0.1, 1000), rate=st.floats(0, 10))
def test_no_cap_never_refuses(needs: float, rate: float) -> None:
    account = Account(BudgetSpec())
    assert account.start("ta-1", 0.0, needs, rate)
    assert account.extend("ta-1", 1e9)
