"""Signing in, in two steps, and out."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from flask import Blueprint, flash, render_template, request
from werkzeug import Response

from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.self_service import Asking
from pam_totp.web.forms import Code, RecoveryCode, SignIn
from pam_totp.web.portal import SERVICE, portal, to
from pam_totp.web.session_cookie import current
from pam_totp.web.sessions import Step

P = ParamSpec("P")
Page = str | Response | tuple[str, int]

WRONG = "User name and password do not match."
ENDED = "Your session has ended. Nothing was lost; sign in again."

pages = Blueprint("signin", __name__)


def signed_in(view: Callable[P, Page]) -> Callable[P, Page]:
    """For pages that are for those who came through both steps, or through the first where they have no second."""

    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Page:
        visit = current()
        state = visit.state
        if state.step is not Step.SIGNED_IN or state.user is None:
            return to("signin.code" if state.step is Step.PASSWORD else "signin.sign_in")
        if not state.by_code and portal().second.needed(state.user):
            visit.move(Step.PASSWORD, state.user)  # enrolled since, elsewhere: the password is not enough any more
            return to("signin.code")
        return view(*args, **kwargs)

    return guarded


def asking(proof: str | None = None) -> Asking:
    """The person at the other end, with what was typed to prove it."""
    user = current().state.user
    assert user is not None
    return Asking(user, request.remote_addr, (proof or "").strip().encode("utf-8", "replace"))


@pages.get("/sign-in")
def sign_in_form() -> Page:
    visit = current()
    if visit.state.step is Step.SIGNED_IN:
        return to("tokens.overview")
    return render_template("sign_in.html", form=SignIn(), notice=ENDED if visit.lost else None)


@pages.post("/sign-in")
def sign_in() -> Page:
    form = SignIn()
    if not form.validate():
        return render_template("sign_in.html", form=form), 422
    config = portal().config
    user = config.passwd_name(form.user.data)
    if not config.passwords.right(user, form.password.data or ""):
        audit_log.write(config.sink, SERVICE, "refused", user=user, reason="password", rhost=request.remote_addr)
        form.password.errors = [WRONG]
        return render_template("sign_in.html", form=form), 401
    if portal().second.needed(user):
        current().move(Step.PASSWORD, user)
        return to("signin.code")
    audit_log.write(config.sink, SERVICE, "accepted", user=user, by="password", rhost=request.remote_addr)
    current().move(Step.SIGNED_IN, user)
    return to("tokens.overview")


@pages.get("/code")
def code_form() -> Page:
    step = current().state.step
    if step is not Step.PASSWORD:
        return to("tokens.overview" if step is Step.SIGNED_IN else "signin.sign_in")
    return render_template("code.html", form=_code_form())


def _code_form() -> Code | RecoveryCode:
    return RecoveryCode() if "recovery" in request.args else Code()


@pages.post("/code")
def code() -> Page:
    visit = current()
    if visit.state.step is not Step.PASSWORD:
        return code_form()
    form = _code_form()
    if not form.validate():
        return render_template("code.html", form=form), 422
    answer = portal().second.answer(asking(form.proof.data))
    if not answer.accepted:
        form.proof.errors = [f"{REFUSED[0].upper()}{REFUSED[1:]}."]
        return render_template("code.html", form=form), 401
    visit.move(Step.SIGNED_IN, visit.state.user, by_code=True)
    for remark in answer.remarks:
        flash(f"{remark[0].upper()}{remark[1:]}.")
    return to("tokens.overview")


@pages.post("/sign-out")
def sign_out() -> Page:
    current().end()
    return to("signin.signed_out")


@pages.get("/signed-out")
def signed_out() -> Page:
    if current().state.step is not Step.STRANGER:
        return to("tokens.overview")
    return render_template("message.html", text="You are signed out.")
