"""The analysis of a stack's order: logins without a code, and refusals that let users in. Pure.

Rules:
- A stack is in order if every login runs pam_totp.so, and only its results success and ignore let a user in.
- The stack must ask for a code only after the first factor was right.
- Every path through the stack is examined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pam_totp.system.pamd.findings import ERROR, WARNING, Code, Finding, Severity
from pam_totp.system.pamd.stack import RESULTS, Handler
from pam_totp.system.pamd.verdicts import Move, find_path, jump, possible_results

CHECK = "order"
_METHODS = ("unix", "sss", "ldap", "krb5", "winbind", "userdb", "pwdfile", "systemd_home", "radius", "mysql", "pgsql")
PASSWORD_MODULES = frozenset(f"pam_{name}.so" for name in _METHODS)
# A module that accepts only root: root becomes another user without a prompt. Distributions use this module in su.
ROOT_MODULE = "pam_rootok.so"

_OWN_RESULTS = (
    "success",
    "auth_err",
    "authinfo_unavail",
    "service_err",
    "conv_err",
    "ignore",
    "open_err",
    "module_unknown",
)
_REFUSALS = {
    "auth_err": "a refused code",
    "authinfo_unavail": "an unreachable store or service",
    "conv_err": "no answer",
    "service_err": "an invalid argument",
    "module_unknown": "a module that cannot be loaded",
}
_Results = Callable[[int], Sequence[str]]


def password_modules(stack: Sequence[Handler]) -> list[int]:
    """Return the indices of modules that ask for a password."""
    return [i for i, h in enumerate(stack) if not h.is_head and h.rule.module in PASSWORD_MODULES]


def totp_modules(stack: Sequence[Handler]) -> list[int]:
    """Return the indices at which the stack runs pam_totp.so."""
    return [i for i, h in enumerate(stack) if h.rule.is_pam_totp]


def check_order(service: str, stack: Sequence[Handler], *, code_only: bool = False) -> Iterator[Finding]:
    """Yield the findings about the order of an auth stack. With `code_only`, PAM needs to ask for the code only."""
    totp = totp_modules(stack)
    if not totp:
        return
    yield from _accepted_refusals(service, stack, totp)
    yield from _logins_without_code(service, stack, totp)
    yield from _impossible_login(service, stack)
    if password_modules(stack) and not code_only:
        yield from _login_without_password(service, stack, totp)
        yield from _code_after_wrong_password(service, stack, totp)
    yield from _forward_pass(service, stack, totp)


def is_jumped_over(stack: Sequence[Handler], index: int) -> bool:
    """Return True if a jump from an earlier module can skip the module at `index`."""
    for i, handler in enumerate(stack[:index]):
        if handler.is_head:
            continue
        for result in RESULTS:
            count = handler.rule.action(result)
            if isinstance(count, int) and _leads_over(stack, i, count, index):
                return True
    return False


def bypasses(stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield each module that lets users in without pam_totp.so, and the module's result in that case."""
    forbidden: set[tuple[int, str]] = set()

    def results(index: int) -> Sequence[str]:
        if stack[index].rule.module == ROOT_MODULE:
            return [r for r in possible_results(stack[index]) if r != "success"]
        return [r for r in possible_results(stack[index]) if (index, r) not in forbidden]

    def is_bypass(path: Sequence[Move], verdict: str) -> bool:
        return verdict == "success" and not any(move.index in totp for move in path)

    while (path := find_path(stack, results, is_bypass)) is not None:
        cause = next((m for m in reversed(path) if m.action == "done" or _jumps_over_any(stack, m, totp)), None)
        if cause is None:
            return
        forbidden.add((cause.index, cause.result))
        yield cause.index, cause.result


def _accepted_refusals(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    """Report the results of pam_totp.so that must deny a login but let users in."""
    accepted = []
    for result, meaning in _REFUSALS.items():

        def results(index: int, result: str = result) -> Sequence[str]:
            return (result,) if index in totp else possible_results(stack[index])

        if find_path(stack, results, _success_through(totp)) is not None:
            accepted.append(f"{meaning} ({result})")
    if accepted:
        rule = stack[totp[0]].rule
        what = f"{service}: {' and '.join(accepted)} {'lets' if len(accepted) == 1 else 'let'} users in: "
        what += f"the control of {_location(stack, totp[0])} is {rule.control}"
        yield _finding(ERROR, Code.REFUSAL_ACCEPTED, what, "make the control of that line `required`")


def _logins_without_code(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    for index, result in bypasses(stack, totp):
        rule = stack[index].rule
        action = rule.action(result)
        how = f"jumps over {_location(stack, totp[0])}" if isinstance(action, int) else "ends the stack"
        is_serious = rule.module in PASSWORD_MODULES or isinstance(action, int)
        what = f"{service}: no code is required when {_location(stack, index)} ({rule.control}) returns {result}: "
        remedy = "move the pam_totp.so line before that line, or change that line's control (unless this is intended)"
        yield _finding(ERROR if is_serious else WARNING, Code.LOGIN_WITHOUT_CODE, f"{what}the module {how}", remedy)


def _impossible_login(service: str, stack: Sequence[Handler]) -> Iterator[Finding]:
    if find_path(stack, lambda i: possible_results(stack[i]), lambda _, verdict: verdict == "success") is None:
        what = f"{service}: no user can log in: every combination of the modules' results is refused"
        yield _finding(ERROR, Code.LOGIN_IMPOSSIBLE, what, "change the controls of the stack (see pam.d(5))")


def _login_without_password(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    results = _wrong_password(stack, password_modules(stack), totp)
    if find_path(stack, results, _success_through(totp)) is not None:
        what = f"{service}: a code alone lets users in: {_location(stack, totp[0])} does not require a right password"
        remedy = "move the pam_totp.so line after the password, and make its control `required`"
        yield _finding(ERROR, Code.LOGIN_WITHOUT_PASSWORD, what, remedy)


def _code_after_wrong_password(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    factors = [i for i in password_modules(stack) if i < totp[0]]

    def asks_for_code(path: Sequence[Move], verdict: str) -> bool:
        return any(move.index in totp for move in path)

    results = _wrong_password(stack, factors, totp)
    if factors and find_path(stack, results, asks_for_code, lambda i: i in totp or None) is not None:
        what = f"{service}: PAM asks for a code after a wrong password, so any person can add to a user's failures: "
        what += f"{_location(stack, factors[0])} is {stack[factors[0]].rule.control}"
        yield _finding(WARNING, Code.CODE_AFTER_WRONG_PASSWORD, what, "make the first factor `requisite`")


def _forward_pass(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    for index in totp:
        if "forward_pass" not in stack[index].rule.arguments:
            continue
        later = [i for i in password_modules(stack) if i > index]
        if not later:
            what = f"{service}: {_location(stack, index)} forwards a password that no later module checks"
            remedy = "after the pam_totp.so line, put a password module with use_first_pass"
            yield _finding(ERROR, Code.FORWARDED_PASSWORD_UNCHECKED, what, remedy)
        elif not {"try_first_pass", "use_first_pass"} & set(stack[later[0]].rule.arguments):
            what = f"{service}: {_location(stack, later[0])} asks again for the password from forward_pass"
            yield _finding(
                WARNING, Code.PASSWORD_ASKED_TWICE, what, "give that module use_first_pass, or remove forward_pass"
            )
        elif stack[index].rule.action("auth_err") not in ("bad", "ok", "ignore"):
            what = f"{service}: after a wrong code, {_location(stack, index)} skips the check of the password: "
            what += "the time of a refusal shows whether the code was right"
            yield _finding(WARNING, Code.FORWARD_PASS_ENDS_STACK, what, "make the control of that line `required`")


def _finding(severity: Severity, code: Code, what: str, remedy: str) -> Finding:
    return Finding(severity, CHECK, code, what, remedy)


def _success_through(totp: Sequence[int]) -> Callable[[Sequence[Move], str], bool]:
    """Return a predicate for paths that end in success and run pam_totp.so."""
    return lambda path, verdict: verdict == "success" and any(move.index in totp for move in path)


def _wrong_password(stack: Sequence[Handler], factors: Sequence[int], totp: Sequence[int]) -> _Results:
    """Return a function that returns a module's possible results if the modules at `factors` refuse the password."""

    def results(index: int) -> Sequence[str]:
        if index in factors:
            return [r for r in possible_results(stack[index]) if r not in ("success", "ignore", "new_authtok_reqd")]
        if index in totp:
            return _OWN_RESULTS
        is_root_module = stack[index].rule.module == ROOT_MODULE  # accepts only root
        return [r for r in possible_results(stack[index]) if r != "success" or not is_root_module]

    return results


def _jumps_over_any(stack: Sequence[Handler], move: Move, totp: Sequence[int]) -> bool:
    return isinstance(move.action, int) and any(_leads_over(stack, move.index, move.action, i) for i in totp)


def _leads_over(stack: Sequence[Handler], start: int, count: int, index: int) -> bool:
    """Return True if a jump over `count` modules from `start` skips the module at `index`."""
    return start < index < jump(stack, start, count)[0]


def _location(stack: Sequence[Handler], index: int) -> str:
    handler = stack[index]
    return f"{handler.rule.module} ({handler.file}:{handler.rule.first + 1})"
