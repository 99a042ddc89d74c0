# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of granting: no term is ever used by two hosts, whatever is lost, late, doubled or restarted."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.arbiter import grants
from appliance.arbiter.grants import NOBODY, Record

HOSTS = ("alpha", "beta")


def test_a_term_is_granted_once() -> None:
    record, first = grants.ask(Record(), "alpha", 5)
    assert first.granted and record == Record(5, "alpha")
    assert grants.ask(record, "alpha", 5)[1].granted, "asked again, because the answer was lost"
    after, second = grants.ask(record, "beta", 5)
    assert not second.granted and after == record and "alpha" in second.reason
    assert not grants.ask(record, "beta", 4)[1].granted
    assert not grants.ask(record, "alpha", 4)[1].granted, "its memory is older than the arbiter's"
    assert grants.ask(record, "beta", 6)[1].granted


def test_a_speaker_hears_that_its_term_is_over() -> None:
    assert not grants.renew(Record(6, "beta"), "alpha", 5)[1].granted
    assert grants.renew(Record(5, "alpha"), "alpha", 5)[1].granted
    assert grants.renew(Record(6, "alpha"), "alpha", 5)[1].granted, "its own grant, not used yet"
    assert grants.renew(Record(6, NOBODY), "alpha", 5) == (Record(6, NOBODY), grants.renew(Record(6), "alpha", 5)[1])


def test_terms_taken_by_word_become_known() -> None:
    record, answer = grants.renew(Record(3, "alpha"), "beta", 7)
    assert answer.granted and record == Record(7, "beta")
    assert grants.renew(Record(7, "alpha"), "beta", 7)[0] == Record(7, "beta")


def test_what_was_not_used_goes_back() -> None:
    assert grants.withdraw(Record(5, "alpha"), "alpha", 4) == Record(5, NOBODY)
    assert grants.withdraw(Record(5, "alpha"), "alpha", 5) == Record(5, "alpha"), "it is used"
    assert grants.withdraw(Record(5, "beta"), "alpha", 4) == Record(5, "beta"), "not its own"
    assert grants.ask(Record(5, NOBODY), "beta", 5)[1].granted


def test_the_operator_stands_above_it() -> None:
    record, answer = grants.force(Record(6, "alpha"), "beta", 6)
    assert answer.granted and answer.term == 7 and record == Record(7, "beta"), "one that nobody had"
    assert grants.force(Record(3, "alpha"), "beta", 6)[0] == Record(6, "beta")
    assert not grants.renew(record, "alpha", 5)[1].granted


class Register(RuleBasedStateMachine):
    """Two hosts whose requests read a version, then replace it: late, twice, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.version, self.record = 0, Record()
        self.used = dict.fromkeys(HOSTS, 0)
        self.holders: dict[int, str] = {}
        self.under_way: list[tuple[str, int, Record, int | None]] = []
        self.asking: dict[str, int | None] = dict.fromkeys(HOSTS)

    @rule(host=st.sampled_from(HOSTS), above=st.integers(1, 2))
    def ask(self, host: str, above: int) -> None:
        term = max(self.used.values()) + above
        wanted, answer = grants.ask(self.record, host, term)
        self.asking[host] = term
        if answer.granted:
            self.under_way.append((host, self.version, wanted, term))

    @rule(host=st.sampled_from(HOSTS))
    def give_up_and_withdraw(self, host: str) -> None:
        """The host will not use an answer that comes from here on."""
        self.asking[host] = None
        self.under_way.append((host, self.version, grants.withdraw(self.record, host, self.used[host]), None))

    @rule(data=st.data(), again=st.booleans(), answered=st.booleans())
    def arrives(self, data: st.DataObject, again: bool, answered: bool) -> None:
        if not self.under_way:
            return
        at = data.draw(st.integers(0, len(self.under_way) - 1))
        host, version, record, term = self.under_way[at] if again else self.under_way.pop(at)
        if version == self.version:
            self.version, self.record = version + 1, record
            if term is not None and answered and self.asking[host] == term:
                self.use(host, term)

    def use(self, host: str, term: int) -> None:
        assert self.holders.get(term, host) == host, f"term {term} is used by two"
        self.holders[term], self.used[host], self.asking[host] = host, term, None

    @invariant()
    def the_record_never_goes_back(self) -> None:
        assert self.record.term >= max(self.holders, default=0)


TestRegister = Register.TestCase
TestRegister.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
