"""Tests of an authority over HTTPS: certificates, messages, joining, renewal, and limits."""

from __future__ import annotations

from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet, question
from tests.support.site import codes

pytestmark = with_postgresql


def test_a_member_gets_a_verdict_on_a_kept_connection(fleet: Fleet) -> None:
    user, member = fleet.user(), fleet.member()
    with member.client() as client:
        for number in range(3):
            assert client.ask(question(user, codes(number))).by == "code"
        assert not client.ask(question(user, codes(0))).accepted
    fleet.authorities[0].waits_for(f"refused user={user} reason=replayed", f"member={member.name}", "rhost=192.0.2.7")
