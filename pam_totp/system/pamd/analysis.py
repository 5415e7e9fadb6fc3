"""What the order of a stack means for our line in it: who is asked for a code, and what a refusal is worth. Pure.

The law: a stack is in order when nobody gets in but by our line, no result of ours lets in but success and ignore,
and a code is asked for only after the first factor was right. Every way through the stack is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pam_totp.system.pamd.findings import ERROR, WARNING, Finding
from pam_totp.system.pamd.stack import RESULTS, Handler
from pam_totp.system.pamd.verdicts import Taken, results_of, way

CHECK = "order"
_ASKING = ("unix", "sss", "ldap", "krb5", "winbind", "userdb", "pwdfile", "systemd_home", "radius", "mysql", "pgsql")
PASSWORDS = frozenset(f"pam_{name}.so" for name in _ASKING)
# Lets root be somebody else without being asked: su has it on every distribution, and it is no way for anybody else.
FOR_ROOT = "pam_rootok.so"

_OURS = ("success", "auth_err", "authinfo_unavail", "service_err", "conv_err", "ignore", "open_err", "module_unknown")
_DENIALS = {
    "auth_err": "a refused code",
    "authinfo_unavail": "a store or a service that is out of reach",
    "conv_err": "no answer",
    "service_err": "a bad argument",
    "module_unknown": "a module that cannot be loaded",
}


def passwords(stack: Sequence[Handler]) -> list[int]:
    """The places of modules that ask for a password."""
    return [i for i, h in enumerate(stack) if not h.head and h.rule.module in PASSWORDS]


def ours(stack: Sequence[Handler]) -> list[int]:
    """The places of our line."""
    return [i for i, h in enumerate(stack) if h.rule.ours]


def findings(service: str, stack: Sequence[Handler], *, alone: bool = False) -> Iterator[Finding]:
    """What is wrong with the order of this auth stack; `alone` where the code is meant to be PAM's only question."""
    mine = ours(stack)
    if not mine:
        return
    yield from _passes(service, stack, mine)
    yield from _not_asked(service, stack, mine)
    yield from _nobody(service, stack)
    if passwords(stack) and not alone:
        yield from _code_alone(service, stack, mine)
        yield from _asked_anyway(service, stack, mine)
    yield from _forward_pass(service, stack, mine)


def splits_a_jump(stack: Sequence[Handler], at: int) -> bool:
    """Whether a jump of an earlier module leads over the place `at`."""
    for i, handler in enumerate(stack[:at]):
        if handler.head:
            continue
        for result in RESULTS:
            count = handler.rule.action(result)
            if isinstance(count, int) and _over(stack, i, count, at):
                return True
    return False


def bypasses(stack: Sequence[Handler], mine: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The modules that let somebody in without our line, and by which result."""
    forbidden: set[tuple[int, str]] = set()

    def results(at: int) -> Sequence[str]:
        if stack[at].rule.module == FOR_ROOT:
            return [r for r in results_of(stack[at]) if r != "success"]
        return [r for r in results_of(stack[at]) if (at, r) not in forbidden]

    def around(taken: Sequence[Taken], verdict: str) -> bool:
        return verdict == "success" and not any(t.at in mine for t in taken)

    while (found := way(stack, results, around)) is not None:
        culprit = next((t for t in reversed(found) if t.action == "done" or _leads_over(stack, t, mine)), None)
        if culprit is None:
            return
        forbidden.add((culprit.at, culprit.result))
        yield culprit.at, culprit.result


def _passes(service: str, stack: Sequence[Handler], mine: Sequence[int]) -> Iterator[Finding]:
    """Results of ours that should deny and do not."""
    passing = []
    for result, meaning in _DENIALS.items():

        def results(at: int, result: str = result) -> Sequence[str]:
            return (result,) if at in mine else results_of(stack[at])

        def let_in(taken: Sequence[Taken], verdict: str) -> bool:
            return verdict == "success" and any(t.at in mine for t in taken)

        if way(stack, results, let_in) is not None:
            passing.append(f"{meaning} ({result})")
    if passing:
        rule = stack[mine[0]].rule
        yield Finding(
            ERROR,
            CHECK,
            f"{service}: {' and '.join(passing)} {'lets' if len(passing) == 1 else 'let'} in: "
            f"the control of {_place(stack, mine[0])} is {rule.control}",
            "make the control of that line `required`",
        )


def _not_asked(service: str, stack: Sequence[Handler], mine: Sequence[int]) -> Iterator[Finding]:
    for at, result in bypasses(stack, mine):
        rule = stack[at].rule
        action = rule.action(result)
        how = f"jumps over {_place(stack, mine[0])}" if isinstance(action, int) else "ends the stack"
        serious = rule.module in PASSWORDS or isinstance(action, int)
        yield Finding(
            ERROR if serious else WARNING,
            CHECK,
            f"{service}: no code is asked for where {_place(stack, at)} ({rule.control}) returns {result}: it {how}",
            "move our line in front of it, or mend that control; leave it where it is meant so",
        )


def _nobody(service: str, stack: Sequence[Handler]) -> Iterator[Finding]:
    if way(stack, lambda at: results_of(stack[at]), lambda _, verdict: verdict == "success") is None:
        yield Finding(ERROR, CHECK, f"{service}: nobody can get in, whatever the modules say", "see pam.d(5)")


def _code_alone(service: str, stack: Sequence[Handler], mine: Sequence[int]) -> Iterator[Finding]:
    """A way in where no password was right."""
    factors = passwords(stack)

    def results(at: int) -> Sequence[str]:
        return _refusals(stack, at) if at in factors else _usual(stack, at, mine)

    def let_in(taken: Sequence[Taken], verdict: str) -> bool:
        return verdict == "success" and any(t.at in mine for t in taken)

    if way(stack, results, let_in) is not None:
        yield Finding(
            ERROR,
            CHECK,
            f"{service}: a code alone lets in: {_place(stack, mine[0])} is enough without a right password",
            "put our line behind the password, and make its control `required`",
        )


def _asked_anyway(service: str, stack: Sequence[Handler], mine: Sequence[int]) -> Iterator[Finding]:
    """A code is asked for although the password was wrong."""
    factors = [at for at in passwords(stack) if at < mine[0]]

    def results(at: int) -> Sequence[str]:
        return _refusals(stack, at) if at in factors else _usual(stack, at, mine)

    def asked(taken: Sequence[Taken], verdict: str) -> bool:
        return any(t.at in mine for t in taken)

    if factors and way(stack, results, asked, lambda at: at in mine or None) is not None:
        yield Finding(
            WARNING,
            CHECK,
            f"{service}: who has the password wrong is asked for a code all the same, and may use up others' tries: "
            f"{_place(stack, factors[0])} is {stack[factors[0]].rule.control}",
            "make the first factor `requisite`",
        )


def _forward_pass(service: str, stack: Sequence[Handler], mine: Sequence[int]) -> Iterator[Finding]:
    for at in mine:
        if "forward_pass" not in stack[at].rule.arguments:
            continue
        behind = [i for i in passwords(stack) if i > at]
        if not behind:
            what = f"{service}: {_place(stack, at)} forwards a password that no module behind it checks"
            yield Finding(ERROR, CHECK, what, "put the password's module behind our line, with use_first_pass")
        elif not {"try_first_pass", "use_first_pass"} & set(stack[behind[0]].rule.arguments):
            what = f"{service}: {_place(stack, behind[0])} asks for the password again that forward_pass hands on"
            yield Finding(WARNING, CHECK, what, "give that module use_first_pass, or take forward_pass away")


def _refusals(stack: Sequence[Handler], at: int) -> Sequence[str]:
    """What the module of a password says where it is wrong, or where nobody can tell."""
    return [r for r in results_of(stack[at]) if r not in ("success", "ignore", "new_authtok_reqd")]


def _usual(stack: Sequence[Handler], at: int, mine: Sequence[int]) -> Sequence[str]:
    """What a module may say at a login of somebody who is not root."""
    if at in mine:
        return _OURS
    return [r for r in results_of(stack[at]) if stack[at].rule.module != FOR_ROOT or r != "success"]


def _leads_over(stack: Sequence[Handler], taken: Taken, mine: Sequence[int]) -> bool:
    return isinstance(taken.action, int) and any(_over(stack, taken.at, taken.action, m) for m in mine)


def _over(stack: Sequence[Handler], start: int, count: int, at: int) -> bool:
    """Whether a jump over `count` modules from `start` leads over `at`."""
    after, level = start + 1, stack[start].level
    while after < len(stack) and stack[after].level >= level and count:
        after += 1
        while after < len(stack) and stack[after].level > level:
            after += 1
        count -= 1
    return start < at < after


def _place(stack: Sequence[Handler], at: int) -> str:
    handler = stack[at]
    return f"{handler.rule.module} ({handler.file}:{handler.rule.first + 1})"
