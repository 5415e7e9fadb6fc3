"""The pages of the guided enrolment, from a ticket, a password or a lost phone to a token and recovery codes.

Rules:
- The enrolment begins with a ticket or, where the site allows that, with the password alone. A user with a lost token
  begins with a recovery code, a temporary code or a ticket.
- The beginning uses up no code. The first code of the new token makes all changes at once. It uses up the proof,
  removes the lost tokens, confirms the new token and replaces the recovery codes.
- The session is at the step ENROLLING until then, and can open only these pages.
- The key of a ticket's token is in the record, so every browser with the ticket shows the same key. Any other new key
  is in the session, and belongs to one enrolment only.
- The key of a token with a serial number is not shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps

from flask import Blueprint, abort, flash, render_template, request
from flask_wtf import FlaskForm
from werkzeug import Response

from pam_totp.core.record import HotpToken, Token, UserRecord
from pam_totp.core.verify import Outcome
from pam_totp.formats import qr
from pam_totp.formats.otpauth import to_uri
from pam_totp.operations.enroll import grouped_key, valid_recovery_codes
from pam_totp.operations.self_service import Problem
from pam_totp.operations.tickets import codes_needed, new_phone, shows_key
from pam_totp.web import request_limits, texts
from pam_totp.web.forms import EVERYTHING, FirstCodeForm, LostPhoneForm, TicketForm, answer_bytes, is_single_code
from pam_totp.web.pages_signin import Page, redirect_by_step, requester, requires_sign_in
from pam_totp.web.pages_tokens import ALREADY_DONE, SHOWN_ONCE
from pam_totp.web.portal import FirstToken, current_portal, redirect_to
from pam_totp.web.session_cookie import current_session
from pam_totp.web.sessions import Enrolment, Step
from pam_totp.web.texts import gettext, lazy_gettext

REFUSED_TICKET = lazy_gettext(
    "Refused. Compare your answer with the ticket. A ticket works once, and only until it expires."
    " Ask for a new ticket if it has expired."
)
REFUSED_PROOF = lazy_gettext(
    "Refused. Compare the code with your list or ticket. Each code works once, so try one that you have not used."
)
STEPS, STEPS_OF_FOB = 5, 4  # start, app, scan, recovery codes, end; a key fob has no app
TOTAL = "guided_steps"  # the number of steps, in the values of the session after the enrolment

pages = Blueprint("guided", __name__)


@pages.before_request
def _require_store() -> None:
    """Answer 404 on every page if the portal has no store."""
    if not current_portal().has_store:
        abort(404)


# The beginning: a user without a token


def _requires_beginner(view: Callable[[], Page]) -> Callable[[], Page]:
    """Return a page that shows `view` to a user without a token who may add a token here."""

    @requires_sign_in
    @wraps(view)
    def guarded() -> Page:
        factors = current_portal().factors
        record = factors.of(requester().user)
        if record.enrolled:
            return redirect_to("tokens.overview")
        if not (factors.takes_tickets or factors.may_add(record)):
            return render_template("first_token.html"), 403
        return view()

    return guarded


def _needs_ticket() -> bool:
    return current_portal().config.first_token is FirstToken.TICKET or "ticket" in request.args


def _start_page(form: FlaskForm) -> str:
    record = current_portal().factors.of(requester().user)
    fobs = [t for t in record.tokens if t.serial is not None]
    return render_template("guided_start.html", form=form, needs_ticket=_needs_ticket(), fobs=fobs, steps=STEPS)


@pages.get("/set-up")
@_requires_beginner
def start_form() -> Page:
    return _start_page(TicketForm() if _needs_ticket() else FlaskForm())


@pages.post("/set-up")
@_requires_beginner
def start() -> Page:
    if not _needs_ticket():
        return _begin(Enrolment(token=_new_phone()))
    form = TicketForm()
    if not form.validate():
        return _start_page(form), 422
    if current_portal().factors.may_begin(requester(form.proof.data)) is None:
        form.proof.errors = [gettext(REFUSED_TICKET)]
        return _start_page(form), 401
    return _begin(Enrolment(form.proof.data))


def _begin(enrolment: Enrolment) -> Response:
    """Start the session of the enrolment, and redirect to its first page."""
    current_session().start(Step.ENROLLING, requester().user, enrolment=enrolment)
    return redirect_to("guided.first_page")


def _new_phone() -> Token:
    """Return a new token for a phone app. The enrolment renames it if the user has a token of that name."""
    record = UserRecord(user=requester().user)
    return new_phone(record, current_portal().config.now()).renamed(gettext("phone"))


# The beginning: a user with a lost token


@pages.get("/lost-phone")
def lost_phone_form() -> Page:
    if current_session().state.step is not Step.PASSWORD:
        return redirect_by_step()
    form = LostPhoneForm()
    form.offer(_tokens_in_use())
    return _lost_phone_page(form)


def _tokens_in_use() -> list[str]:
    """Return the names of the user's confirmed tokens, those without a serial number first: most are phones."""
    tokens = [t for t in current_portal().factors.of(requester().user).tokens if t.confirmed]
    return [t.name for t in sorted(tokens, key=lambda t: t.serial is not None)]


def _lost_phone_page(form: LostPhoneForm) -> str:
    takes_tickets = current_portal().factors.takes_tickets
    return render_template("guided_lost.html", form=form, takes_tickets=takes_tickets, steps=STEPS)


@pages.post("/lost-phone")
def lost_phone() -> Page:
    if current_session().state.step is not Step.PASSWORD:
        return redirect_by_step()
    form, names = LostPhoneForm(), _tokens_in_use()
    form.offer(names)
    if not form.validate():
        return _lost_phone_page(form), 422
    outcome = current_portal().factors.may_begin(requester(form.proof.data))
    if outcome is None:
        form.proof.errors = [gettext(REFUSED_PROOF)]
        return _lost_phone_page(form), 401
    if outcome is Outcome.TICKET:
        return _begin(Enrolment(form.proof.data))
    chosen = form.lost.data if "lost" in form else EVERYTHING
    lost = tuple(names) if chosen == EVERYTHING else (chosen,)
    return _begin(Enrolment(form.proof.data, _new_phone(), lost))


# The steps: an app, the key, the first code


def _requires_way(view: Callable[[Enrolment, Token], Page]) -> Callable[[], Page]:
    """Return a page that shows `view` with the enrolment of the session and its token."""

    @wraps(view)
    def guarded() -> Page:
        session, portal = current_session(), current_portal()
        way, user = session.state.enrolment, session.state.user
        if session.state.step is not Step.ENROLLING or way is None or user is None:
            return redirect_by_step()
        if not way.proof and portal.second_factor.is_required(user):
            session.start(Step.PASSWORD, user)  # the user has got a token elsewhere
            return redirect_by_step()
        token = way.token or portal.factors.invited_token(requester(way.proof))
        if token is None:
            return render_template("guided_ended.html"), 410
        return view(way, token)

    return guarded


def _codes_needed(way: Enrolment, token: Token) -> int:
    return codes_needed(token) if way.token is None else 1


def _steps(token: Token) -> int:
    return STEPS if shows_key(token) else STEPS_OF_FOB


@pages.get("/set-up/app")
@_requires_way
def first_page(way: Enrolment, token: Token) -> Page:
    if not shows_key(token):
        return redirect_to("guided.scan_form")
    return render_template("guided_app.html", steps=STEPS, apps=current_portal().config.apps)


@pages.get("/set-up/scan")
@_requires_way
def scan_form(way: Enrolment, token: Token) -> Page:
    return _scan_page(FirstCodeForm(), way, token)


@pages.post("/set-up/scan")
@_requires_way
def scan(way: Enrolment, token: Token) -> Page:
    form, session = FirstCodeForm(), current_session()
    if not form.validate():
        return _scan_page(form, way, token), 422
    typed = form.code.data
    if _codes_needed(way, token) > 1 and is_single_code(typed):
        if way.first_code in ("", typed):
            session.set_enrolment(replace(way, first_code=typed))
            return redirect_to("guided.scan_form")
        typed = f"{way.first_code} {typed}"
    factors, asking, first = current_portal().factors, requester(way.proof), answer_bytes(typed)
    made = factors.redeem(asking, first) if way.token is None else factors.set_up(asking, way.token, first, way.lost)
    if not isinstance(made, Problem):
        return _finish(made, token)
    if not session.is_current:  # the form was sent twice: the first request has made the change
        flash(gettext(ALREADY_DONE))
        return redirect_to("tokens.overview")
    way = replace(way, first_code="")
    session.set_enrolment(way)
    form.code.errors = [texts.of_problem(made)]
    return _scan_page(form, way, token), 422


def _scan_page(form: FirstCodeForm, way: Enrolment, token: Token) -> str:
    is_fob, user = not shows_key(token), requester().user
    form.fit(is_fob=is_fob, by_button=isinstance(token, HotpToken), is_next=bool(way.first_code))
    shown = {}
    if not is_fob:
        uri = to_uri(token, user, current_portal().config.issuer)
        shown = {"uri": uri, "qr_code": qr.inline_svg(uri), "key": grouped_key(token)}
    return render_template(
        "guided_scan.html",
        form=form,
        token=token,
        is_fob=is_fob,
        codes_needed=_codes_needed(way, token),
        lost=_tokens_in_use() if way.token is None else way.lost,
        steps=_steps(token),
        **shown,
    )


def _finish(codes: list[str], token: Token) -> Page:
    """Sign the user in, because the user has given a code, end the user's other sessions, and show recovery codes."""
    session, user = current_session(), requester().user
    session.start(Step.SIGNED_IN, user, by_code=True)
    session.end_others()
    session.set_recovery_codes(codes)
    session[TOTAL] = _steps(token)
    request_limits.remember_network(user)
    return redirect_to("guided.codes")


@pages.post("/set-up/cancel")
def cancel() -> Page:
    """End the enrolment without a change. The session returns to the step after the password."""
    session = current_session()
    user = session.state.user
    if session.state.step is Step.ENROLLING and user is not None:
        is_required = current_portal().second_factor.is_required(user)
        session.start(Step.PASSWORD if is_required else Step.SIGNED_IN, user)
        flash(gettext("Nothing was changed."))
    return redirect_by_step()


# The end: recovery codes


def _total() -> int:
    total = current_session().get(TOTAL, STEPS)
    return total if isinstance(total, int) else STEPS


@pages.get("/set-up/codes")
@requires_sign_in
def codes() -> Page:
    kept = valid_recovery_codes(current_portal().factors.of(requester().user), current_session().recovery_codes)
    if not kept:
        flash(gettext(SHOWN_ONCE))
        return redirect_to("tokens.overview")
    return render_template("guided_codes.html", codes=kept, user=requester().user, steps=_total())


@pages.post("/set-up/codes")
@requires_sign_in
def codes_kept() -> Page:
    current_session().set_recovery_codes([])
    return redirect_to("guided.done")


@pages.get("/set-up/done")
@requires_sign_in
def done() -> Page:
    record = current_portal().factors.of(requester().user)
    if not record.enrolled:
        return redirect_to("tokens.overview")
    return render_template("guided_done.html", record=record, steps=_total())
