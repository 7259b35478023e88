"""Who founds, who joins, who waits: every case of a first start, by one rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lb.control.forming import Answer, Decision, Found, Join, Wait, decide

LISTED = {"a": "h1:1", "b": "h2:1", "c": "h3:1"}
EMPTY = {address: Answer(name) for name, address in LISTED.items()}


def without(name: str) -> dict[str, Answer]:
    return {address: answer for address, answer in EMPTY.items() if answer.name != name}


def test_the_one_whose_name_sorts_first_founds_when_all_others_are_empty() -> None:
    assert decide("a", LISTED, (), without("a")) == Found()


def test_the_others_wait_for_it() -> None:
    decision = decide("b", LISTED, (), without("b"))

    assert isinstance(decision, Wait)
    assert decision.for_ == ("a",)


def test_nobody_founds_while_one_listed_member_is_silent() -> None:
    answers = {"h2:1": Answer("b")}

    assert decide("a", LISTED, (), answers) == Wait(("c",))


def test_a_held_group_is_joined_even_if_others_are_silent() -> None:
    answers = {"h2:1": Answer("b", group="g", leader="h2:1")}

    assert decide("a", LISTED, (), answers) == Join("g", "h2:1")


def test_a_group_without_a_leader_is_waited_for_and_never_founded_anew() -> None:
    answers = {"h2:1": Answer("b", group="g"), "h3:1": Answer("c")}

    assert isinstance(decide("a", LISTED, (), answers), Wait)


def test_a_group_is_found_by_an_address_to_join_as_well() -> None:
    assert decide("z", {}, ("h9:1",), {"h9:1": Answer("x", "g", "h8:1")}) == Join("g", "h8:1")


def test_who_is_only_to_join_never_founds() -> None:
    decision = decide("z", {}, ("h9:1",), {"h9:1": Answer("x")})

    assert isinstance(decision, Wait)
    assert decision.for_ == ("h9:1",)


def test_two_groups_are_named_and_how_to_wipe_one() -> None:
    answers = {"h2:1": Answer("b", "g", "h2:1"), "h3:1": Answer("c", "k", "h3:1")}

    decision = decide("a", LISTED, (), answers)

    assert isinstance(decision, Wait)
    assert "b (h2:1) holds g" in decision.why
    assert "c (h3:1) holds k" in decision.why
    assert "remove raft/" in decision.why


def test_an_address_where_somebody_else_answers_is_not_taken_for_a_member() -> None:
    answers = {**without("a"), "h3:1": Answer("d")}

    decision = decide("a", LISTED, (), answers)

    assert isinstance(decision, Wait)
    assert 'should be "c" and says that it is "d"' in decision.why


def test_who_is_not_listed_founds_nothing() -> None:
    decision = decide("z", LISTED, (), EMPTY)

    assert isinstance(decision, Wait)
    assert '"z" is not among group.members' in decision.why


def test_an_instance_that_lists_itself_alone_founds() -> None:
    assert decide("a", {"a": "h1:1"}, (), {}) == Found()


@given(st.dictionaries(st.sampled_from(sorted(LISTED)), st.booleans()))
def test_at_most_one_of_them_ever_founds_and_only_if_all_are_heard(heard: dict[str, bool]) -> None:
    def decision_of(own: str) -> Decision:
        answers = {LISTED[name]: Answer(name) for name, up in heard.items() if up and name != own}
        return decide(own, LISTED, (), answers)

    founders = [own for own in LISTED if decision_of(own) == Found()]

    assert founders in ([], ["a"])
    if founders:
        assert heard.get("b")
        assert heard.get("c")
