"""A person's own tokens: what there is, one more, one less, back into step, recovery codes."""

from __future__ import annotations

import secrets

from flask import Blueprint, abort, flash, render_template, request
from werkzeug import Response

from pam_totp.core.record import NEW_SECRET, HotpToken, Token, UserRecord
from pam_totp.formats import qr
from pam_totp.formats.otpauth import to_uri, typed_secret
from pam_totp.operations.enroll import grouped_key, new_token
from pam_totp.operations.self_service import Problem, Reason, conflict, is_last
from pam_totp.web.forms import Handed, Name, Proof, Row, Scanned, _Proof
from pam_totp.web.pages_signin import Page, asking, signed_in
from pam_totp.web.portal import portal, to
from pam_totp.web.session_cookie import current
from pam_totp.web.sessions import Step

pages = Blueprint("tokens", __name__)

GONE = "That was done already, or took too long. Nothing was lost: these are your tokens."


@pages.before_request
def _only_with_a_store() -> Response | None:
    """Without one, the portal says whether a code is right, and no more."""
    if portal().own is None and request.endpoint != "tokens.overview":
        abort(404)
    return None


def _record() -> UserRecord:
    return portal().factors.of(asking().user)


def _chosen(record: UserRecord) -> Token | None:
    return record.token(request.args.get("token", ""))


def _answered(form: _Proof, record: UserRecord) -> _Proof:
    """The form without the field for a code where there is no token yet to give one."""
    if not record.enrolled:
        form.without_proof()
    return form


def _proof(form: _Proof) -> str | None:
    return form.proof.data if "proof" in form else None


def _show(form: _Proof, problem: Problem) -> None:
    """Put the problem beside its field, or beside the first one where the form has no such field."""
    field = form[problem.field] if problem.field in form else next(f for f in form if f.name != "csrf_token")
    field.errors = [problem.text]


def _added(name: str) -> Page:
    """A new token is a new step: a new session, and no others."""
    visit = current()
    visit.move(Step.SIGNED_IN, visit.state.user, by_code=True)
    visit.end_others()
    flash(f"{name} is in use now.")
    return to("tokens.overview")


@pages.get("/")
@signed_in
def overview() -> Page:
    if portal().own is None:
        return render_template("checked.html")
    record = _record()
    active = [t for t in record.tokens if t.active]
    return render_template("tokens.html", record=record, last=active[0] if len(active) == 1 else None)


# A phone: a name, then the QR code, then the first code


@pages.get("/add-phone")
@signed_in
def add_phone_form() -> Page:
    form = Name()
    taken = {t.name for t in _record().tokens}
    form.name.data = next(n for n in ("phone", *(f"phone {i}" for i in range(2, 99))) if n not in taken)
    return render_template("add_phone.html", form=form)


@pages.post("/add-phone")
@signed_in
def add_phone() -> Page:
    form = Name()
    if form.validate():
        try:
            token = new_token(
                "totp",
                name=form.name.data.strip(),
                secret=secrets.token_bytes(NEW_SECRET),
                algorithm="SHA1",
                digits=6,
                now=portal().config.now(),
            )
        except ValueError as e:
            form.name.errors = [Problem("name", Reason.INVALID_VALUE, str(e)).text]
        else:
            reason = conflict(_record(), token)  # reported before the user scans the code
            if reason is None:
                current().wait_for(token)
                return to("tokens.scan_form")
            form.name.errors = [Problem("name", reason).text]
    return render_template("add_phone.html", form=form), 422


@pages.get("/add-phone/scan")
@signed_in
def scan_form() -> Page:
    token = current().waiting
    if token is None:
        flash(GONE)
        return to("tokens.overview")
    return _scan_page(token, _answered(Scanned(), _record()))


@pages.post("/add-phone/scan")
@signed_in
def scan() -> Page:
    visit = current()
    form = _answered(Scanned(), _record())
    token = visit.take_waiting()  # of two posts of one form, one gets it
    if token is None:
        flash(GONE)
        return to("tokens.overview")
    if form.validate():
        problem = portal().factors.add(asking(_proof(form)), token, _typed(form.code.data))
        if problem is None:
            return _added(token.name)
        _show(form, problem)
    visit.wait_for(token)
    page = _scan_page(token, form)
    return page, 422


def _scan_page(token: Token, form: _Proof) -> str:
    uri = to_uri(token, asking().user, portal().config.issuer)
    return render_template(
        "scan.html", form=form, token=token, uri=uri, picture=qr.inline_svg(uri), key=grouped_key(token)
    )


@pages.post("/add-phone/cancel")
@signed_in
def cancel() -> Page:
    current().wait_for(None)
    flash("Nothing was added.")
    return to("tokens.overview")


# A hardware token: one that an admin has handed out, or one whose key is known


@pages.get("/add-token")
@signed_in
def add_token_form() -> Page:
    form = Handed(data={"serial": request.args.get("serial", "")})
    return render_template("add_token.html", form=_answered(form, _record()))


@pages.post("/add-token")
@signed_in
def add_token() -> Page:
    record = _record()
    form = _answered(Handed(), record)
    if form.validate():
        serial = form.serial.data.strip()
        problem = _claimed(form, serial) if not form.key.data else _enrolled(form, serial)
        if problem is None:
            return _added(serial)
        _show(form, problem)
    return render_template("add_token.html", form=form), 422


def _claimed(form: Handed, serial: str) -> Problem | None:
    return portal().factors.claim(asking(_proof(form)), serial, _typed(form.codes.data))


def _enrolled(form: Handed, serial: str) -> Problem | None:
    try:
        token = new_token(
            "hotp",
            name=serial,
            secret=typed_secret(form.key.data),
            algorithm="SHA1",
            digits=6,
            now=portal().config.now(),
        ).with_serial(serial)
    except ValueError as e:
        return Problem("key", Reason.INVALID_VALUE, str(e))
    return portal().factors.add(asking(_proof(form)), token, _typed(form.codes.data), field="codes", codes=2)


# Changes of one token


@pages.get("/resync")
@signed_in
def resync_form() -> Page:
    return _about("resync.html", Row())


@pages.post("/resync")
@signed_in
def resync() -> Page:
    form = Row()
    token = _chosen(_record())
    if token is not None and form.validate():
        problem = portal().factors.resync(asking(), token.name, _typed(form.codes.data))
        if problem is None:
            flash(f"{token.name} is back in step.")
            return to("tokens.overview")
        form.codes.errors = [problem.text]
    return _about("resync.html", form)


@pages.get("/rename")
@signed_in
def rename_form() -> Page:
    return _about("rename.html", Name(data={"name": request.args.get("token", "")}))


@pages.post("/rename")
@signed_in
def rename() -> Page:
    form = Name()
    token = _chosen(_record())
    if token is not None and form.validate():
        new = form.name.data.strip()
        problem = None if new == token.name else portal().factors.rename(asking(), token.name, new)
        if problem is None:
            flash(f"{token.name} is called {new} now.")
            return to("tokens.overview")
        form.name.errors = [problem.text]
    return _about("rename.html", form)


@pages.get("/remove")
@signed_in
def remove_form() -> Page:
    return _about("remove.html", Proof())


@pages.post("/remove")
@signed_in
def remove() -> Page:
    form = Proof()
    token = _chosen(_record())
    if token is not None and form.validate():
        problem = portal().factors.remove(asking(form.proof.data), token.name)
        if problem is None:
            current().end_others()
            flash(f"{token.name} is removed. Its codes are refused from now on.")
            return to("tokens.overview")
        _show(form, problem)
    return _about("remove.html", form)


def _about(template: str, form: Name | Row | Proof) -> Page:
    """A page about the token that the address names."""
    record = _record()
    token = _chosen(record)
    if token is None:
        flash(GONE)
        return to("tokens.overview")
    page = render_template(
        template, form=form, token=token, last=is_last(record, token), by_button=isinstance(token, HotpToken)
    )
    return (page, 422) if form.errors else page


# Recovery codes


@pages.get("/recovery")
@signed_in
def recovery_form() -> Page:
    return render_template("recovery.html", form=Proof(), record=_record())


@pages.post("/recovery")
@signed_in
def recovery() -> Page:
    visit = current()
    form = Proof()
    if form.validate():
        made = portal().factors.recovery(asking(form.proof.data))
        if not isinstance(made, Problem):
            visit.keep_recovery(made)
            return to("tokens.recovery_codes")
        if visit.recovery:  # the form was sent twice: the codes are those of the first time
            return to("tokens.recovery_codes")
        _show(form, made)
    return render_template("recovery.html", form=form, record=_record()), 422


@pages.get("/recovery/codes")
@signed_in
def recovery_codes() -> Page:
    codes = current().recovery
    if not codes:
        flash("Recovery codes are shown once. If you have not kept them, make new ones.")
        return to("tokens.overview")
    return render_template("recovery_codes.html", codes=codes, user=asking().user)


@pages.post("/recovery/kept")
@signed_in
def recovery_kept() -> Page:
    current().keep_recovery([])
    return to("tokens.overview")


def _typed(text: str) -> bytes:
    return text.strip().encode("utf-8", "replace")
