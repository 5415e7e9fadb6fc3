"""The pages for a user's own tokens: list, add, resynchronise, rename and remove them, and create recovery codes."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from functools import wraps

from flask import Blueprint, abort, current_app, flash, render_template, request
from markupsafe import Markup, escape
from werkzeug import Response

from pam_totp.core.oath import DEFAULT_PERIOD
from pam_totp.core.record import NEW_SECRET, HotpToken, Token, TotpToken, UserRecord
from pam_totp.formats import qr
from pam_totp.formats.otpauth import to_uri, typed_secret
from pam_totp.operations.enroll import grouped_key, new_token, valid_recovery_codes
from pam_totp.operations.self_service import Problem, Reason, conflict, is_last
from pam_totp.web import texts
from pam_totp.web.filters import duration
from pam_totp.web.forms import (
    FormWithProof,
    HardwareTokenForm,
    Kind,
    NameForm,
    NextCodeForm,
    ProofForm,
    ResyncForm,
    ScanForm,
    answer_bytes,
    is_single_code,
)
from pam_totp.web.pages_signin import Page, requester, requires_sign_in
from pam_totp.web.portal import current_portal, redirect_to
from pam_totp.web.session_cookie import current_session
from pam_totp.web.sessions import Step, new_form
from pam_totp.web.texts import gettext, lazy_gettext

NEW_CODE = lazy_gettext("Enter a new code: the code that you signed in with is used up. A recovery code also works.")
NEW_CODE_BY_BUTTON = lazy_gettext(
    "Press the button for a new code: the code that you signed in with is used up. A recovery code also works."
)
# The script of the page counts "in 20 seconds" down, and then shows "now".
NEXT_CODE = lazy_gettext(
    "The code that you signed in with is used up. The next code appears %(when)s. A recovery code also works."
)

SHOWN_ONCE = lazy_gettext("Recovery codes are shown only once. Create new codes if you did not save them.")

pages = Blueprint("tokens", __name__)

ALREADY_DONE = lazy_gettext("This change was already made, or the page has expired. Check your tokens below.")


@pages.before_request
def _require_store() -> Response | None:
    """Answer 404 on every page except the overview if the portal has no store."""
    if not current_portal().has_store and request.endpoint != "tokens.overview":
        abort(404)
    return None


def _user_record() -> UserRecord:
    return current_portal().factors.of(requester().user)


def _selected_token(record: UserRecord) -> Token | None:
    """Return the token that the URL names."""
    return record.token(request.args.get("token", ""))


def _without_needless_proof(form: FormWithProof, record: UserRecord) -> FormWithProof:
    """Return `form` without the field `proof` if the user has no confirmed token. Otherwise, set a hint at `proof`."""
    if not record.enrolled:
        form.remove_proof()
    else:
        form.proof.description = new_code_hint(record, current_portal().config.now())
    return form


def _form_id() -> str:
    """Return the id of the form, from the URL. The session keeps a new token, or a first code, for the form."""
    return request.args.get("form", "")


def _proof_form() -> ProofForm:
    form = ProofForm()
    form.proof.description = new_code_hint(_user_record(), current_portal().config.now())
    return form


def new_code_hint(record: UserRecord, now: int) -> str:
    """Return a hint on how to get an unused code.

    The hint has the seconds until the next code if all active tokens are TOTP tokens whose current code is used up.
    """
    active = [t for t in record.tokens if t.active]
    waits = [(t.next_factor - t.drift) * t.period - now for t in active if isinstance(t, TotpToken)]
    if not waits:
        return gettext(NEW_CODE_BY_BUTTON)
    if len(waits) == len(active) and min(waits) > 0:
        when = gettext("in %(time)s", time=duration(min(waits)))
        countdown = Markup('<span data-countdown="{}" data-now="{}">{}</span>')
        return escape(gettext(NEXT_CODE)) % {"when": countdown.format(min(waits), gettext("now"), when)}
    return gettext(NEW_CODE)


def _proof(form: FormWithProof) -> str | None:
    return form.proof.data if "proof" in form else None


def _show_problem(form: FormWithProof, problem: Problem) -> None:
    """Show `problem` beside the field that it names, or beside the first field if `form` has no such field."""
    field = form[problem.field] if problem.field in form else next(f for f in form if f.name != "csrf_token")
    field.errors = [texts.of_problem(problem)]


def _finish_enrolment(name: str) -> Page:
    """Start a new session, because the user has now given a code, and end the user's other sessions."""
    session = current_session()
    session.start(Step.SIGNED_IN, session.state.user, by_code=True)
    session.end_others()
    flash(gettext("%(name)s is in use now.", name=name))
    return redirect_to("tokens.overview")


@pages.get("/")
@requires_sign_in
def overview() -> Page:
    if not current_portal().has_store:
        return render_template("code_accepted.html")
    record = _user_record()
    active = [t for t in record.tokens if t.active]
    return render_template(
        "tokens.html",
        record=record,
        may_add=_may_add(record),
        begins=_may_add(record) or current_portal().factors.takes_tickets,
        has_codes_to_keep=bool(current_session().recovery_codes),
        only_active=active[0] if len(active) == 1 else None,
    )


def _may_add(record: UserRecord) -> bool:
    return current_portal().factors.may_add(record)


def requires_permission_to_add(view: Callable[[], Page]) -> Callable[[], Page]:
    """Return a page that shows `view` unless an administrator must add the user's first token."""

    @requires_sign_in
    @wraps(view)
    def guarded() -> Page:
        if _may_add(_user_record()):
            return view()
        current_session().drop_pending()
        return render_template("first_token.html"), 403

    return guarded


# Add a phone: choose a name, scan the QR code, enter the first code


@pages.get("/add-phone")
@requires_permission_to_add
def add_phone_form() -> Page:
    form = NameForm()
    used_names, first = {t.name for t in _user_record().tokens}, gettext("phone")
    form.name.data = next(n for n in (first, *(f"{first} {i}" for i in range(2, 99))) if n not in used_names)
    return render_template("add_phone.html", form=form)


@pages.post("/add-phone")
@requires_permission_to_add
def add_phone() -> Page:
    form = NameForm()
    if form.validate():
        token = new_token(
            "totp",
            name=form.name.data,
            secret=secrets.token_bytes(NEW_SECRET),
            algorithm="SHA1",
            digits=6,
            now=current_portal().config.now(),
        )
        reason = conflict(_user_record(), token)  # so that a conflict is reported before the user scans the QR code
        if reason is None:
            return redirect_to("tokens.scan_form", form=current_session().add_pending(token))
        form.name.errors = [texts.of_problem(Problem("name", reason))]
    return render_template("add_phone.html", form=form), 422


@pages.get("/add-phone/scan")
@requires_permission_to_add
def scan_form() -> Page:
    token = current_session().pending_token(_form_id())
    if token is None:
        flash(gettext(ALREADY_DONE))
        return redirect_to("tokens.overview")
    return _scan_page(token, _without_needless_proof(ScanForm(), _user_record()))


@pages.post("/add-phone/scan")
@requires_permission_to_add
def scan() -> Page:
    session = current_session()
    form = _without_needless_proof(ScanForm(), _user_record())
    token = session.take_pending(_form_id())  # only one request gets the token if the form is sent twice
    if token is None:
        flash(gettext(ALREADY_DONE))
        return redirect_to("tokens.overview")
    if form.validate():
        problem = current_portal().factors.add(requester(_proof(form)), token, answer_bytes(form.code.data))
        if problem is None:
            return _finish_enrolment(token.name)
        _show_problem(form, problem)
    session.add_pending(token, _form_id())
    page = _scan_page(token, form)
    return page, 422


def seconds_left() -> int:
    """Return the seconds that the user has for the current page."""
    return current_session().seconds_left(form=_form_id())


def _scan_page(token: Token, form: FormWithProof) -> str:
    uri = to_uri(token, requester().user, current_portal().config.issuer)
    return render_template(
        "scan.html",
        form=form,
        form_id=_form_id(),
        token=token,
        uri=uri,
        qr_code=qr.inline_svg(uri),
        key=grouped_key(token),
    )


@pages.post("/add-phone/cancel")
@requires_sign_in
def cancel() -> Page:
    current_session().drop_pending(_form_id())
    flash(gettext("Nothing was added."))
    return redirect_to("tokens.overview")


# Add a key fob: a token that an administrator assigned, or a new token with a key that the user enters


@pages.get("/add-token")
@requires_sign_in
def add_token_form() -> Page:
    form, record = HardwareTokenForm(data={"serial": request.args.get("serial", "")}), _user_record()
    return _add_token_page(_without_needless_proof(form, record), record)


@pages.post("/add-token")
@requires_sign_in
def add_token() -> Page:
    record = _user_record()
    form = _without_needless_proof(HardwareTokenForm(), record)
    if not form.validate():
        return _add_token_page(form, record), 422
    fields = {field.name: field.data or "" for field in form if field.name != "csrf_token"}
    if is_single_code(fields["codes"]) and not _is_own_timed(fields):
        form_id = new_form()
        current_session().set_first_code(form_id, fields)
        return redirect_to("tokens.next_code_form", form=form_id)
    return _add_token(form, fields)


@pages.get("/add-token/next")
@requires_sign_in
def next_code_form() -> Page:
    return render_template("next_code.html", form=NextCodeForm(), form_id=_form_id())


@pages.post("/add-token/next")
@requires_sign_in
def next_code() -> Page:
    form = NextCodeForm()
    if not form.validate():
        return render_template("next_code.html", form=form, form_id=_form_id()), 422
    first = current_session().take_first_code(_form_id())
    if first is None:
        flash(gettext(ALREADY_DONE))
        return redirect_to("tokens.overview")
    whole = _without_needless_proof(HardwareTokenForm(formdata=None, data=first), _user_record())
    return _add_token(whole, first | {"codes": _as_row(first["codes"], form.codes.data)})


def _as_row(first: str, second: str) -> str:
    """Return the first code and the second answer, or only the second answer if it has several codes."""
    return f"{first} {second}" if is_single_code(second) else second


def _add_token_page(form: FormWithProof, record: UserRecord) -> str:
    return render_template("add_token.html", form=form, may_add=_may_add(record))


def _add_token(form: FormWithProof, fields: dict[str, str]) -> Page:
    added = _enroll(fields) if fields["key"] else _claim(fields)
    if not isinstance(added, Problem):
        return _finish_enrolment(added.name)
    _show_problem(form, added)
    return _add_token_page(form, _user_record()), 422


def _claim(fields: dict[str, str]) -> Token | Problem:
    return current_portal().factors.claim(
        requester(fields.get("proof")), fields["serial"], answer_bytes(fields["codes"])
    )


def _is_own_timed(fields: dict[str, str]) -> bool:
    """Return True if the form is for a user's own key fob with a clock, which one code confirms."""
    return bool(fields["key"]) and Kind(fields["kind"]).period is not None


def _enroll(fields: dict[str, str]) -> Token | Problem:
    serial, period = fields["serial"], Kind(fields["kind"]).period
    try:
        token = new_token(
            "hotp" if period is None else "totp",
            name=serial,
            secret=typed_secret(fields["key"]),
            algorithm=fields["algorithm"],
            digits=int(fields["digits"]),
            now=current_portal().config.now(),
            period=period or DEFAULT_PERIOD,
        ).with_serial(serial)
    except ValueError:
        return Problem("key", Reason.INVALID_KEY)
    problem = current_portal().factors.add(
        requester(fields.get("proof")),
        token,
        answer_bytes(fields["codes"]),
        field="codes",
        codes=2 if period is None else 1,
    )
    return token if problem is None else problem


# Change one token


@pages.get("/resync")
@requires_sign_in
def resync_form() -> Page:
    return _resync_page(ResyncForm())


@pages.post("/resync")
@requires_sign_in
def resync() -> Page:
    session, form = current_session(), ResyncForm()
    token = _selected_token(_user_record())
    if token is not None and form.validate():
        page = f"tokens.resync {token.name}"
        first = session.take_first_code(page)
        typed = form.codes.data
        if is_single_code(typed) and (first is None or first["codes"] == typed):
            session.set_first_code(page, {"codes": typed})
            return _resync_page(form, is_next=True)
        codes = typed if first is None else _as_row(first["codes"], typed)
        problem = current_portal().factors.resync(requester(), token.name, answer_bytes(codes))
        if problem is None:
            flash(gettext("%(name)s is back in step.", name=token.name))
            return redirect_to("tokens.overview")
        form.codes.errors = [texts.of_problem(problem)]
    return _resync_page(form)


def _resync_page(form: ResyncForm, *, is_next: bool = False) -> Page:
    token = _selected_token(_user_record())
    form.fit(by_button=isinstance(token, HotpToken), is_next=is_next)
    return _token_page("resync.html", form)


@pages.get("/rename")
@requires_sign_in
def rename_form() -> Page:
    return _token_page("rename.html", NameForm(data={"name": request.args.get("token", "")}))


@pages.post("/rename")
@requires_sign_in
def rename() -> Page:
    form = NameForm()
    token = _selected_token(_user_record())
    if token is not None and form.validate():
        new = form.name.data
        problem = None if new == token.name else current_portal().factors.rename(requester(), token.name, new)
        if problem is None:
            flash(gettext("%(name)s was renamed to %(new)s.", name=token.name, new=new))
            return redirect_to("tokens.overview")
        form.name.errors = [texts.of_problem(problem)]
    return _token_page("rename.html", form)


@pages.get("/remove")
@requires_sign_in
def remove_form() -> Page:
    return _token_page("remove.html", _proof_form())


@pages.post("/remove")
@requires_sign_in
def remove() -> Page:
    form = _proof_form()
    token = _selected_token(_user_record())
    if token is not None and form.validate():
        problem = current_portal().factors.remove(requester(form.proof.data), token.name)
        if problem is None:
            current_session().end_others()
            flash(gettext("%(name)s was removed. Its codes are refused from now on.", name=token.name))
            return redirect_to("tokens.overview")
        _show_problem(form, problem)
    return _token_page("remove.html", form)


def _token_page(template: str, form: NameForm | ResyncForm | ProofForm) -> Page:
    """Return a page about the token that the URL names."""
    record = _user_record()
    token = _selected_token(record)
    if token is None:
        flash(gettext(ALREADY_DONE))
        return redirect_to("tokens.overview")
    page = render_template(
        template, form=form, token=token, is_only_active=is_last(record, token), by_button=isinstance(token, HotpToken)
    )
    return (page, 422) if form.errors else page


# Recovery codes


@pages.get("/recovery")
@requires_sign_in
def recovery_form() -> Page:
    return render_template("recovery.html", form=_proof_form(), record=_user_record())


@pages.post("/recovery")
@requires_sign_in
def recovery() -> Page:
    session = current_session()
    form = _proof_form()
    if form.validate():
        new_codes = current_portal().factors.recovery(requester(form.proof.data))
        if not isinstance(new_codes, Problem):
            session.end_others()
            session.set_recovery_codes(new_codes)
            return redirect_to("tokens.recovery_codes")
        if session.recovery_codes:  # the form was sent twice: show the codes that the first request created
            return redirect_to("tokens.recovery_codes")
        _show_problem(form, new_codes)
    return render_template("recovery.html", form=form, record=_user_record()), 422


@pages.get("/recovery/codes")
@requires_sign_in
def recovery_codes() -> Page:
    # Another request may have replaced the codes.
    codes = valid_recovery_codes(_user_record(), current_session().recovery_codes)
    if not codes:
        flash(gettext(SHOWN_ONCE))
        return redirect_to("tokens.overview")
    return render_template("recovery_codes.html", codes=codes, user=requester().user)


@pages.get("/recovery/codes.txt")
@requires_sign_in
def recovery_codes_file() -> Page:
    """Return the recovery codes that the user must still save, as a text file."""
    codes = valid_recovery_codes(_user_record(), current_session().recovery_codes)
    if not codes:
        abort(404)
    response = current_app.make_response("\n".join((*_lines_of_file(codes), "")))
    response.mimetype = "text/plain"
    response.headers["Content-Disposition"] = f'attachment; filename="{_file_name(request.host, requester().user)}"'
    return response


def _file_name(host: str, user: str) -> str:
    """Return a file name with the host and the user. The name has only letters, digits, dots and dashes."""
    return "-".join(["recovery-codes", *re.findall(r"[A-Za-z0-9.]+", f"{host} {user}")]) + ".txt"


def _lines_of_file(codes: list[str]) -> Iterator[str]:
    """Yield the lines of the text file with the recovery codes."""
    config, user = current_portal().config, requester().user
    yield gettext(
        "Recovery codes of %(user)s for %(issuer)s. Each works once. Cross out each code that you use.",
        user=user,
        issuer=config.issuer,
    )
    yield from ("", *codes, "")
    yield gettext("Made on %(date)s at %(host)s. Older codes no longer work.", date=today(), host=request.host)
    site = config.appearance
    if site.has_help:
        help_text, _ = site.help_in(texts.current_language())
        yield gettext("Need help?")
        yield from (text for text in (help_text, (site.url or "").removeprefix("mailto:"), site.telephone) if text)


def today() -> str:
    """Return the date of the portal's clock in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(current_portal().config.now()))


@pages.post("/recovery/kept")
@requires_sign_in
def recovery_saved() -> Page:
    current_session().set_recovery_codes([])
    return redirect_to("tokens.overview")
