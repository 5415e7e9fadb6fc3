"""Tests of guessing: concurrent guesses, the rate of right guesses over a year, and the owner's logins meanwhile."""

from __future__ import annotations

import random
import re
import threading
import time

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import DAY
from pam_totp.core.verify import Outcome
from pam_totp.operations.authenticate import decide
from pam_totp.store.file import FileStore
from tests.support.pamconf import Result
from tests.support.site import ME, TREE, Site, codes
from tests.torture.attacker import BEGIN, LOGINS_A_DAY, World, formula, live
from tests.torture.crowd import in_processes, in_threads
from tests.torture.owner import share_of_two_codes, simulated_share
from tests.torture.pace import LONG, report, rounds

BOTH = ("warm", "cold")


def ready(site: Site) -> None:
    site.start()
    site.configure("warm", way="socket")
    site.configure("cold", way="spawn")


def test_of_200_concurrent_guesses_none_succeeds_after_the_fifth(site: Site) -> None:
    ready(site)
    for _ in range(rounds(1, 20)):
        site.enrol()
        for _ in range(5):
            assert site.login("000000", service="warm").result is Result.AUTH_ERR
        answers = ["000000"] * 198 + [codes(0), codes(1)]
        random.shuffle(answers)
        counted = in_threads(site, answers, ("warm",))
        # The service rejects connections of ordinary users above their quota. The test counts these logins as refused.
        assert Result.SUCCESS not in counted, counted
        assert counted.total() == 200
        assert site.record().failures >= 5 + counted[Result.AUTH_ERR] - 2
        assert site.counter() == 0
        assert site.login(codes(0, 3), service="warm").result is Result.SUCCESS, "three codes in a row are accepted"


@pytest.mark.skipif(not LONG, reason="requires make torture: starts 200 interpreters at once")
def test_of_200_concurrent_guesses_by_helpers_none_succeeds(site: Site) -> None:
    ready(site)
    site.enrol(failures=5, failures_at=int(time.time()))
    counted = in_processes(site, ["000000"] * 100 + [codes(0)] + ["111111"] * 99, BOTH)
    assert Result.SUCCESS not in counted, counted
    assert site.login(codes(0, 3), service="warm").result is Result.SUCCESS


def test_the_count_holds_across_processes_services_and_restarts(site: Site) -> None:
    ready(site)
    site.configure("sudo", way="socket")
    site.enrol()
    given = 0

    def fails(service: str) -> None:
        nonlocal given
        given += 1
        assert site.login("000000", service=service).result is Result.AUTH_ERR
        assert site.record().failures == given

    fails("warm")
    site.stop()
    fails("cold")
    site.start()
    fails("sudo")
    site.kill()
    site.start()
    fails("warm")
    assert site.command("verify", ME, "000000").returncode == 1
    assert site.record().failures == 5
    for service in ("warm", "cold", "sudo"):
        assert site.login(codes(0), service=service).result is Result.AUTH_ERR, "every process refuses a single code"
    assert site.command("verify", ME, codes(0)).returncode == 1
    assert site.login(codes(0, 2), service="sudo").result is Result.SUCCESS


def test_setting_the_clock_back_and_forth_loses_no_failure(site: Site) -> None:
    """The clock jumps to any time until a day after the first failure, because the count then decreases."""
    site.enrol()
    store = FileStore(str(site.store))

    def outcome_at(now: int) -> Outcome:
        return decide(store, ME, Answer.parse(b"000000"), Policy(), lambda: now).outcome

    begin = 1_700_000_000
    chance = random.Random(4)
    for number in range(1, rounds(60, 2000)):
        now = chance.choice((begin, begin - DAY, begin - 4000 * DAY, 0, begin + DAY - 1, chance.randrange(begin)))
        assert outcome_at(now) is Outcome.WRONG
        record = site.record()
        if number == 1:
            begin = record.failures_at or 0
        assert record.failures == number
    assert (
        decide(store, ME, Answer.parse(codes(0).encode()), Policy(), lambda: begin).outcome
        is Outcome.CONSECUTIVE_NEEDED
    )


# ---- Guesses over a year


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "patient"])
@pytest.mark.parametrize("kind", ["hotp", "totp"])
def test_a_year_of_guessing_has_the_probability_of_the_formula(kind: str, greedy: bool) -> None:
    year = live(kind, 6, greedy=greedy)
    assert year.logins == 365 * LOGINS_A_DAY, "every login of the owner succeeds"
    assert year.guesses == {1: (5 if greedy else 4) + 364}
    assert year.chance == pytest.approx(formula(kind, 6, greedy=greedy), rel=0.0001)
    assert year.chance <= {"hotp": 0.00406, "totp": 0.00111}[kind]
    who = "greedy" if greedy else "patient"
    report(f"guessing {kind}, {who}: 365 days, {year.logins} logins of the owner, chance {100 * year.chance:.3g} %")
    assert set(year.answers_needed) == {2 if greedy else 1}, (
        "the owner needs two codes in a row against the greedy attacker, and a single code against the patient attacker"
    )


def test_a_flood_of_wrong_answers_neither_succeeds_nor_blocks_the_owner() -> None:
    for kind in ("hotp", "totp"):
        days = rounds(10, 365)
        year = live(kind, 6, greedy=True, days=days, flood_every=10)
        assert year.logins == days * LOGINS_A_DAY, "every login of the owner succeeds"
        assert year.answers_needed.keys() == {2, 3}
        floods = days * LOGINS_A_DAY // 10
        assert (year.guesses[1], year.guesses[2]) == (5 + days - 1, 15 * floods)
        assert year.chance == pytest.approx(formula(kind, 6, greedy=True, days=days, floods=floods), rel=0.0001)
        report(f"guessing {kind}, with a flood before every tenth login: {days} days, chance {100 * year.chance:.3g} %")


@pytest.mark.parametrize("seed", range(rounds(4, 200)))
def test_no_schedule_has_more_than_five_guesses_and_one_a_day(seed: int) -> None:
    """The attacker and the owner act at random times, in any order, for a month."""
    chance = random.Random(seed)
    world = World("hotp", 6, Policy(), seed=seed)
    world.now = begin = BEGIN + chance.randrange(DAY)
    while world.now < begin + 30 * DAY:
        world.now += chance.choice((0, 1, 60, 3600, DAY // 7, DAY - 1, DAY, DAY + 1))
        actions = (world.be_greedy, world.be_patient, world.guess, world.owner_logs_in, world.owner_mistypes)
        chance.choice(actions)()
        assert world.year.guesses[1] <= 5 + (world.now - begin) // DAY
    assert world.year.guesses[1] > 5, "the attacker also guessed on later days"
    assert world.year.logins > 0


def test_the_rate_of_right_guesses_matches_the_probability() -> None:
    """The test uses the largest look-ahead and many years, so that enough guesses are right for a comparison."""
    world = World("hotp", 6, Policy(look_ahead=100), seed=3)
    days = rounds(40_000, 1_000_000)
    for _ in range(days):
        world.be_greedy()
        world.now += DAY
    expected = (5 + days - 1) * 101e-6
    assert abs(world.year.hits - expected) <= 4 * expected**0.5, (world.year.hits, expected)
    report(f"right guesses, look_ahead 100: {world.year.hits} in {days} days, {expected:.0f} expected")


@pytest.mark.parametrize("kind", ["hotp", "totp"])
def test_a_guessed_pair_allows_one_guess_of_the_third_code(kind: str) -> None:
    """The third prompt uses up the pair: a reusable pair would allow a search of all third codes."""
    world = World(kind, 6, Policy(), seed=1)
    world.flood()
    first = 500 if kind == "hotp" else world.now // 30 - 1
    assert world.try_a_pair_in_two_stages(first, tries=50) == 1
    assert world.failures >= 20


@pytest.mark.parametrize("kind", ["hotp", "totp"])
@pytest.mark.parametrize("digits", [6, 7, 8])
def test_the_probabilities_in_security_md_are_right(kind: str, digits: int) -> None:
    stated = re.search(
        rf"^- {kind.upper()}, {digits} digits: ([0-9.]+) % greedy, ([0-9.]+) % patient, ([0-9.]+) % with floods$",
        (TREE / "SECURITY.md").read_text(),
        re.MULTILINE,
    )
    assert stated is not None, f"SECURITY.md has no probability for {kind} with {digits} digits"
    floods = 365 * LOGINS_A_DAY
    for percent, greedy, flooded in ((stated[1], True, 0), (stated[2], False, 0), (stated[3], True, floods)):
        expected = 100 * formula(kind, digits, greedy=greedy, floods=flooded)
        assert percent == f"{expected:.3}"


def test_the_shares_of_two_codes_in_security_md_are_right() -> None:
    text = (TREE / "SECURITY.md").read_text()
    stated = re.findall(r"^\| ([0-9]) % \| ([0-9.]+) % \|$", text, re.MULTILINE)
    assert [percent for percent, _ in stated] == ["1", "2", "3", "5"]
    for percent, share in stated:
        computed = share_of_two_codes(int(percent) / 100)
        assert float(share) == pytest.approx(100 * computed, rel=0.06)
        report(
            f"an owner who mistypes {percent} % of the codes needs two codes in {100 * computed:.2g} % of the logins"
        )


def test_a_simulation_needs_two_codes_as_often_as_the_markov_chain() -> None:
    """Failures of consecutive logins are not independent, so the bounds are wide."""
    days = rounds(500, 20_000)
    simulated, computed = simulated_share(0.05, days, seed=1), share_of_two_codes(0.05)
    assert simulated == pytest.approx(computed, rel=0.1 if LONG else 0.3)
    report(f"5 % mistyped, {days} days: {100 * simulated:.3g} % need two codes, computed {100 * computed:.3g} %")


def test_an_owner_who_never_mistypes_needs_one_code() -> None:
    assert share_of_two_codes(0.0) == 0.0


# ---- Logins of the owner during a flood


def test_the_owner_is_accepted_during_a_flood_of_wrong_answers(site: Site) -> None:
    ready(site)
    site.enrol()
    over = threading.Event()
    refused: list[Result] = []

    def flood(service: str) -> None:
        while not over.is_set():
            refused.append(site.login("000000", service=service).result)

    attackers = [threading.Thread(target=flood, args=(service,)) for service in ("warm",) * 18 + ("cold",) * 2]
    for attacker in attackers:
        attacker.start()
    try:
        counter = 0
        for number in range(rounds(6, 300)):
            while site.record().failures < 20 and number % 2:
                time.sleep(0.01)  # wait before every second login until three codes in a row are required
            done = site.login(codes(counter, 3), service=BOTH[number % 2])
            assert done.result is Result.SUCCESS
            counter += 3
    finally:
        over.set()
        for attacker in attackers:
            attacker.join()
    assert len(refused) > 20
    assert set(refused) <= {Result.AUTH_ERR, Result.AUTHINFO_UNAVAIL}, (
        "every wrong answer is refused, some by a lock timeout"
    )
    report(
        f"the owner during a flood: {number + 1} of {number + 1} logins succeeded, during {len(refused)} wrong answers"
    )
