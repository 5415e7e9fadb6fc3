"""The analysis of a stack's order: logins without a code, and refusals that let users in. Pure.

Rules:
- A stack is safe if every login runs pam_totp.so, and only its results success and ignore let a user in.
- The stack must ask for a code only after the first factor was right.
- The analysis examines every path through the stack. A finding is an error if an attacker with the password can choose
  the path.
- The finding is a note if the path depends on a condition, such as a group: the site has exempted these logins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from pam_totp.system.pamd import ways
from pam_totp.system.pamd.conditions import Account, result_for
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity, names
from pam_totp.system.pamd.modules import CODE_MODULES, CONSTANT_RESULTS, ROOT_MODULE, Kind, kind
from pam_totp.system.pamd.stack import RESULTS, Handler, Rule
from pam_totp.system.pamd.verdicts import Move, find_path, jump, possible_results
from pam_totp.system.pamd.ways import Bypass, Known, Need, Results

CHECK = "order"

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


def password_modules(stack: Sequence[Handler]) -> list[int]:
    """Return the indices of modules that ask for a password."""
    return [i for i, h in enumerate(stack) if not h.is_head and kind(h.rule) is Kind.PASSWORD]


def totp_modules(stack: Sequence[Handler]) -> list[int]:
    """Return the indices at which the stack runs pam_totp.so."""
    return [i for i, h in enumerate(stack) if h.rule.is_pam_totp]


def other_code_modules(stack: Sequence[Handler]) -> list[int]:
    """Return the indices of other modules that ask for a code."""
    return [i for i, h in enumerate(stack) if not h.is_head and h.rule.module in CODE_MODULES]


def names_forward_pass(rule: Rule) -> bool:
    """Return True if a rule itself has the argument forward_pass."""
    return "forward_pass" in rule.arguments


def check_order(
    service: str,
    stack: Sequence[Handler],
    *,
    code_only: bool = False,
    accounts: Iterable[Account] = (),
    forwards: Callable[[Rule], bool] = names_forward_pass,
) -> Iterator[Finding]:
    """Yield the findings about the order of an auth stack. With `code_only`, PAM needs to ask for the code only.

    `accounts` yields the accounts that can log in to the service: findings then name the exempted accounts.
    `forwards` returns True if forward_pass is in force for a rule of pam_totp.so: the site file may set it.
    """
    totp = totp_modules(stack)
    if not totp:
        return
    yield from _accepted_refusals(service, stack, totp)
    yield from _logins_without_code(service, stack, totp, accounts)
    yield from _impossible_login(service, stack)
    yield from _two_codes(service, stack, totp)
    if password_modules(stack) and not code_only:
        yield from _login_without_password(service, stack, totp)
        yield from _code_after_wrong_password(service, stack, totp)
    yield from _forward_pass(service, stack, [i for i in totp if forwards(stack[i].rule)])


def accepts_without_token(stack: Sequence[Handler], *, any_first_factor: bool = True) -> bool:
    """Return True if a login can succeed when pam_totp.so returns ignore (nullok).

    libpam then needs the success of another module. Only modules without a prompt may succeed if `any_first_factor`
    is False.
    """

    def results(index: int) -> Sequence[str]:
        rule = stack[index].rule
        if rule.is_pam_totp:
            return ("ignore",)
        asks_nothing = stack[index].is_head or rule.module in CONSTANT_RESULTS or kind(rule) is Kind.CONDITION
        if any_first_factor or asks_nothing:
            return possible_results(stack[index], ("success",) if rule.module == ROOT_MODULE else ())
        return possible_results(stack[index], ways.NO_PASSWORD)

    return find_path(stack, results, lambda _, verdict: verdict == "success") is not None


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


def _accepted_refusals(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    """Report the results of pam_totp.so that must deny a login but let users in."""
    accepted = []
    for result, meaning in _REFUSALS.items():

        def results(index: int, result: str = result) -> Sequence[str]:
            return (result,) if index in totp else possible_results(stack[index])

        if _success_through(stack, results, totp) is not None:
            accepted.append(f"{meaning} ({result})")
    if accepted:
        rule = stack[totp[0]].rule
        what = f"{service}: {' and '.join(accepted)} {'lets' if len(accepted) == 1 else 'let'} users in: "
        what += f"the control of {_location(stack, totp[0])} is {rule.control}"
        yield _finding(ERROR, Code.REFUSAL_ACCEPTED, what, "make the control of that line `required`")


def _logins_without_code(
    service: str, stack: Sequence[Handler], totp: Sequence[int], accounts: Iterable[Account]
) -> Iterator[Finding]:
    found = ways.bypasses(stack, totp)
    candidates = list(accounts) if any(b.need is Need.CONDITION for b in found) else []
    exempt = _exempt(service, stack, totp, candidates)
    others = [a.name for a in candidates if a.name != "root" and a.name not in exempt]
    for bypass in found:
        if bypass.need is Need.CONDITION and exempt and not others:
            what = f"{service}: no user is asked for a code: {_location(stack, bypass.index)} "
            what += f"{_effect(stack, bypass, totp)} for {names(exempt)}"
            yield _finding(ERROR, Code.LOGIN_WITHOUT_CODE, what, "correct the condition, or move the pam_totp.so line")
        elif bypass.need is Need.CONDITION:
            yield _exemption(service, stack, totp, bypass, exempt)
        else:
            yield _bypass(service, stack, totp, bypass)


def _bypass(service: str, stack: Sequence[Handler], totp: Sequence[int], bypass: Bypass) -> Finding:
    """Return the finding for a bypass that is independent of conditions."""
    rule = stack[bypass.index].rule
    what = f"{service}: no code is required when {_location(stack, bypass.index)} ({rule.control}) returns "
    what += f"{bypass.result}: the module {_effect(stack, bypass, totp)}"
    remedy = "move the pam_totp.so line before that line, or change that line's control"
    if bypass.need is Need.NOTHING:
        return _finding(ERROR, Code.LOGIN_WITHOUT_CODE, what, remedy)
    return _finding(WARNING, Code.LOGIN_WITHOUT_CODE, what, f"{remedy} (unless this is intended)")


def _exemption(
    service: str, stack: Sequence[Handler], totp: Sequence[int], bypass: Bypass, exempt: Sequence[str]
) -> Finding:
    """Return the finding for a bypass that depends on a condition."""
    what = f"{service}: {_location(stack, bypass.index)} {_effect(stack, bypass, totp)} after {bypass.result}"
    if kind(stack[bypass.index].rule) is not Kind.CONDITION:
        conditions = [i for i, h in enumerate(stack) if not h.is_head and kind(h.rule) is Kind.CONDITION]
        what += f", depending on {' and '.join(_location(stack, i) for i in conditions)}"
    else:
        what += f" (condition: {' '.join(stack[bypass.index].rule.arguments) or 'none'})"
    omitted = "a password or a code" if bypass.also_password else "a code"
    what += (
        f": these users log in without {omitted}: {names(exempt)}"
        if exempt
        else f": such logins succeed without {omitted}"
    )
    remedy = "change that line, unless this is intended"
    return _finding(WARNING if bypass.also_password else NOTE, Code.CODE_EXEMPTION, what, remedy)


def _exempt(service: str, stack: Sequence[Handler], totp: Sequence[int], accounts: Sequence[Account]) -> list[str]:
    """Return the names of the accounts that never need a code."""
    judged: dict[frozenset[tuple[int, str]], bool] = {}
    exempt = []
    for account in accounts:
        known = _known(service, stack, account)
        key = frozenset(known.items())
        if key not in judged:
            judged[key] = ways.is_exempt(stack, totp, known)
        if judged[key]:
            exempt.append(account.name)
    return exempt


def _known(service: str, stack: Sequence[Handler], account: Account) -> Known:
    results = {i: result_for(h.rule, account, service) for i, h in enumerate(stack) if not h.is_head}
    return {i: result for i, result in results.items() if result is not None}


def _effect(stack: Sequence[Handler], bypass: Bypass, totp: Sequence[int]) -> str:
    """Return the way in which a bypass skips the line of pam_totp.so."""
    is_jump = isinstance(stack[bypass.index].rule.action(bypass.result), int)
    return f"jumps over {_location(stack, totp[0])}" if is_jump else "ends the stack"


def _two_codes(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    """Report a login that asks for two codes: by two lines of pam_totp.so, or by another module and pam_totp.so."""
    others = other_code_modules(stack)

    def results(index: int) -> Sequence[str]:
        return ("success",) if index in (*totp, *others) else possible_results(stack[index])

    def success_with(is_wanted: Callable[[frozenset[int]], bool]) -> Sequence[Move] | None:
        return find_path(
            stack,
            results,
            lambda path, verdict: verdict == "success" and is_wanted(frozenset(move.index for move in path)),
            lambda move: move.index if move.index in (*totp, *others) else None,
        )

    path = success_with(lambda met: len(met & frozenset(totp)) > 1)
    if path is not None:
        places = [_location(stack, move.index) for move in path if move.index in totp]
        what = f"{service}: a login asks for two codes, because pam_totp.so runs twice: {' and '.join(places)}"
        yield _finding(WARNING, Code.MODULE_TWICE, what, "delete one of these lines")
    for index in others:
        pairs = frozenset(frozenset((index, ours)) for ours in totp)
        if success_with(partial(_includes_any, pairs)) is not None:
            what = (
                f"{service}: a login asks for two codes: by {_location(stack, index)} and {_location(stack, totp[0])}"
            )
            remedy = f"delete the line of {stack[index].rule.module}, or run 'pam-totp disable {service}' and "
            remedy += f"'pam-totp enable {service} --replace'"
            yield _finding(WARNING, Code.OTHER_CODE_MODULE, what, remedy)


def _includes_any(sets: frozenset[frozenset[int]], met: frozenset[int]) -> bool:
    return any(wanted <= met for wanted in sets)


def _impossible_login(service: str, stack: Sequence[Handler]) -> Iterator[Finding]:
    if find_path(stack, lambda i: possible_results(stack[i]), lambda _, verdict: verdict == "success") is None:
        what = f"{service}: no user can log in: libpam refuses every combination of the modules' results"
        yield _finding(ERROR, Code.LOGIN_IMPOSSIBLE, what, "change the controls of the stack (see pam.d(5))")


def _login_without_password(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    factors = password_modules(stack)
    open_worlds = []
    for world in ways.worlds(stack, {}):
        if ways.is_viable(stack, world):
            results = _wrong_password(totp, ways.results_in(stack, world, refusing=factors))
            open_worlds.append(_success_through(stack, results, totp) is not None)
    if open_worlds and all(open_worlds):
        what = f"{service}: a code alone lets users in: {_location(stack, totp[0])} does not require a right password"
        remedy = "move the pam_totp.so line after the password, and make its control `required`"
        yield _finding(ERROR, Code.LOGIN_WITHOUT_PASSWORD, what, remedy)
    elif any(open_worlds):
        what = f"{service}: a condition of the stack lets users in with a code and no password"
        yield _finding(NOTE, Code.PASSWORD_EXEMPTION, what, "change that condition, unless this is intended")


def _code_after_wrong_password(service: str, stack: Sequence[Handler], totp: Sequence[int]) -> Iterator[Finding]:
    factors = [i for i in password_modules(stack) if i < totp[0]]

    def asks_for_code(path: Sequence[Move], verdict: str) -> bool:
        return any(move.index in totp for move in path)

    results = _wrong_password(totp, ways.results_in(stack, {}, refusing=factors))
    if factors and find_path(stack, results, asks_for_code, lambda move: move.index in totp or None) is not None:
        what = f"{service}: PAM asks for a code after a wrong password, so an attacker can cause failures of a user: "
        what += f"{_location(stack, factors[0])} is {stack[factors[0]].rule.control}"
        yield _finding(WARNING, Code.CODE_AFTER_WRONG_PASSWORD, what, "make the first factor `requisite`")


def _forward_pass(service: str, stack: Sequence[Handler], forwarding: Sequence[int]) -> Iterator[Finding]:
    for index in forwarding:
        later = [i for i in password_modules(stack) if i > index]
        if not later:
            what = f"{service}: {_location(stack, index)} forwards a password that no later module checks"
            remedy = "put a password module with use_first_pass after the pam_totp.so line"
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


def _success_through(stack: Sequence[Handler], results: Results, totp: Sequence[int]) -> Sequence[Move] | None:
    """Return a path that ends in success and runs pam_totp.so, or None."""
    return find_path(
        stack,
        results,
        lambda path, verdict: verdict == "success" and any(move.index in totp for move in path),
        lambda move: move.index in totp or None,
    )


def _wrong_password(totp: Sequence[int], possible: Results) -> Results:
    """Return `possible`, extended by the results of pam_totp.so."""
    return lambda index: _OWN_RESULTS if index in totp else possible(index)


def _leads_over(stack: Sequence[Handler], start: int, count: int, index: int) -> bool:
    """Return True if a jump over `count` modules from `start` skips the module at `index`."""
    return start < index < jump(stack, start, count)[0]


def _location(stack: Sequence[Handler], index: int) -> str:
    handler = stack[index]
    return f"{handler.rule.module} ({handler.file}:{handler.rule.first + 1})"
