"""Hypothesis strategies for valid values of the core."""

from __future__ import annotations

from hypothesis import strategies as st

from pam_totp.core.oath import ALGORITHMS
from pam_totp.core.record import Grace, HotpToken, TemporaryCode, Ticket, Token, TotpToken, UserRecord

TIME_END = 2**62  # Unix seconds: the upper bound for the times of a record
LAST_COUNTER = 2**64 - 1

_printable = st.characters(exclude_categories=["C", "Z"])
texts = st.text(_printable | st.just(" "), min_size=1, max_size=20).filter(lambda t: t == t.strip())
times = st.integers(0, 5) | st.integers(0, 2**33) | st.integers(TIME_END - 5, TIME_END - 1)
secrets = st.binary(min_size=14, max_size=40) | st.binary(min_size=120, max_size=128)

_common = {
    "name": texts,
    "secret": secrets,
    "algorithm": st.sampled_from(ALGORITHMS),
    "digits": st.integers(6, 8),
    "enabled": st.booleans(),
    "confirmed": st.booleans(),
    "serial": st.none() | texts,
    "created": times,
    "last_used": st.none() | times,
    "row_needed": st.booleans(),
}
counters = st.integers(0, 20) | st.integers(0, LAST_COUNTER) | st.integers(LAST_COUNTER - 20, LAST_COUNTER + 1)
hotp_tokens = st.builds(HotpToken, **_common, counter=counters)
totp_tokens = st.builds(
    TotpToken,
    **_common,
    period=st.sampled_from([1, 30, 60, 86_400]) | st.integers(1, 86_400),
    last_step=st.none() | st.integers(0, 20) | st.integers(0, LAST_COUNTER),
    drift=st.integers(-3, 3) | st.integers(-(2**31), 2**31),
)
tokens: st.SearchStrategy[Token] = hotp_tokens | totp_tokens
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
salts = st.binary(min_size=16, max_size=64).map(bytes.hex)
tickets = st.builds(Ticket, salt=salts, digest=digests, ends=times, token=texts, picture=st.none() | texts)
temporary_codes = st.builds(TemporaryCode, salt=salts, digest=digests, ends=times)
recent = st.text(_printable | st.just(" "), max_size=60) | st.just(
    "accepted 5 code sshd; refused 7 wrong sudo 192.0.2.7"
)


@st.composite
def records(draw: st.DrawFn) -> UserRecord:
    """Return a record with all fields, sometimes with the maximum number of tokens."""
    made = draw(st.lists(tokens, max_size=8, unique_by=(lambda t: t.name, lambda t: t.secret)))
    recovery = draw(st.lists(digests, max_size=10, unique=True))
    failures = draw(st.integers(0, 30) | st.integers(0, 2**62))
    return UserRecord(
        user=draw(texts),
        tokens=tuple(made),
        salt=draw(salts if recovery else st.none() | salts),
        recovery=tuple(recovery),
        failures=failures,
        failures_at=draw(times if failures else st.none() | times),
        refused=draw(st.integers(0, 30) | st.integers(0, 2**62)),
        grace=tuple(draw(st.lists(st.builds(Grace, service=texts, rhost=texts, granted=times), max_size=4))),
        ticket=draw(st.none() | tickets),
        temporary=draw(st.none() | temporary_codes),
        recent=draw(recent),
        changes=draw(recent),
    )
