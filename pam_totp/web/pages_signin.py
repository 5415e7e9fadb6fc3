"""The pages for signing in, in two steps, and for signing out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec

from flask import Blueprint, flash, render_template, request
from werkzeug import Response

from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.self_service import Asking
from pam_totp.web import request_limits
from pam_totp.web.delays import hold
from pam_totp.web.forms import CodeForm, RecoveryCodeForm, SignInForm, answer_bytes
from pam_totp.web.portal import SERVICE, current_portal, name_for_log, redirect_to
from pam_totp.web.session_cookie import current_session
from pam_totp.web.sessions import Enrolment, Step
from pam_totp.web.texts import gettext, lazy_gettext

P = ParamSpec("P")
Page = str | Response | tuple[str, int] | dict[str, int]

WRONG_PASSWORD = lazy_gettext("User name and password do not match.")
REFUSED_RECOVERY = lazy_gettext(
    "Refused. Compare the code with your list. Each recovery code works once, so try one that you have not used."
)
ENDED_TITLE = lazy_gettext("Your session has ended")
ENDED = lazy_gettext("You were signed out. Changes that a page confirmed were made. Sign in again.")

pages = Blueprint("signin", __name__)


def redirect_by_step() -> Response:
    """Return a redirect to the page of the step that the session has reached."""
    step = current_session().state.step
    pages_of_steps = {
        Step.PASSWORD: "signin.code_form",
        Step.ENROLLING: "guided.first_page",
        Step.SIGNED_IN: "tokens.overview",
    }
    return redirect_to(pages_of_steps.get(step, "signin.sign_in_form"))


def requires_sign_in(view: Callable[P, Page]) -> Callable[P, Page]:
    """Return a page that shows `view` only after both steps, or after the first step to a user without a token."""

    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Page:
        session = current_session()
        state = session.state
        if state.step is not Step.SIGNED_IN or state.user is None:
            return redirect_by_step()
        if not state.by_code and current_portal().second_factor.is_required(state.user):
            session.start(Step.PASSWORD, state.user)  # the user has added a token in another session
            return redirect_to("signin.code")
        return view(*args, **kwargs)

    return guarded


def requester(proof: str | None = None) -> Asking:
    """Return the signed-in user, the user's address, and `proof`, the typed code."""
    user = current_session().state.user
    assert user is not None
    return Asking(user, request.remote_addr, answer_bytes(proof))


@pages.get("/sign-in")
def sign_in_form() -> Page:
    session = current_session()
    if session.state.step is Step.SIGNED_IN:
        return redirect_to("tokens.overview")
    ended = {"heading": ENDED_TITLE, "notice": ENDED} if session.has_expired else {}
    return render_template("sign_in.html", form=SignInForm(), **ended)


@pages.post("/sign-in")
def sign_in() -> Page:
    form = SignInForm()
    if not form.validate():
        return render_template("sign_in.html", form=form), 422
    config = current_portal().config
    user = config.passwd_name(form.user.data)
    if not config.passwords.verify(user, form.password.data or "", partial(hold, request.environ)):
        name = name_for_log(user)
        audit_log.write(config.sink, SERVICE, "refused", user=name, reason="password", rhost=request.remote_addr)
        form.password.errors = [gettext(WRONG_PASSWORD)]
        return render_template("sign_in.html", form=form), 401
    if current_portal().second_factor.is_required(user):
        current_session().start(Step.PASSWORD, user)
        return redirect_to("signin.code")
    audit_log.write(config.sink, SERVICE, "accepted", user=user, by="password", rhost=request.remote_addr)
    current_session().start(Step.SIGNED_IN, user)
    request_limits.remember_network(user)
    return redirect_to("guided.start_form" if current_portal().begins_with_ticket(user) else "tokens.overview")


@pages.get("/code")
def code_form() -> Page:
    if current_session().state.step is not Step.PASSWORD:
        return redirect_by_step()
    return render_template("code.html", form=_code_form())


def _code_form() -> CodeForm | RecoveryCodeForm:
    return RecoveryCodeForm() if "recovery" in request.args else CodeForm()


@pages.post("/code")
def code() -> Page:
    session = current_session()
    if session.state.step is not Step.PASSWORD:
        return code_form()
    form = _code_form()
    if not form.validate():
        return render_template("code.html", form=form), 422
    result = current_portal().second_factor.verify(requester(form.proof.data), session.take_earlier())
    if result.is_ticket:
        session.start(Step.ENROLLING, requester().user, enrolment=Enrolment(form.proof.data))
        return redirect_by_step()
    if not result.accepted:
        session.set_earlier(result.earlier)
        form.proof.errors = [gettext(REFUSED_RECOVERY if isinstance(form, RecoveryCodeForm) else REFUSED)]
        return render_template("code.html", form=form), 401
    user = requester().user
    session.start(Step.SIGNED_IN, user, by_code=True)
    request_limits.remember_network(user)
    for message in result.messages:
        flash(message)
    return redirect_to("tokens.overview")


@pages.post("/prolong")
def prolong() -> Page:
    """Prolong the session, and return the remaining seconds. Only the script of a page sends this form."""
    return {"seconds": int(current_session().prolong())}


@pages.post("/sign-out")
def sign_out() -> Page:
    current_session().end()
    return redirect_to("signin.signed_out")


@pages.get("/signed-out")
def signed_out() -> Page:
    if current_session().state.step is not Step.ANONYMOUS:
        return redirect_to("tokens.overview")
    return render_template("message.html", heading=gettext("Signed out"), text=gettext("You are signed out."))
