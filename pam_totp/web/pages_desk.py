"""The pages of the desk: find a user, see the user's tokens, and help with them.

Rules:
- The pages exist only for a desk member who signed in by a code. Other signed-in users get status 404.
- Membership is looked up at every request, and `operations.desk` looks it up again at every change.
- A change needs a new code of the desk member. A wrong code counts as a failure of the desk member.
- Only the session that created a temporary code or a ticket shows it, until the desk member has handed it over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from markupsafe import Markup

from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.desk import Desk, DeskError, Handed, Reason
from pam_totp.operations.stock import Reason as StockReason
from pam_totp.web.filters import DAY, HOUR
from pam_totp.web.forms import AssignForm, FormWithProof, NewTicketForm, ProofForm, ReplaceForm, TemporaryForm
from pam_totp.web.pages_signin import Page, requester, requires_sign_in
from pam_totp.web.pages_tokens import new_code_hint
from pam_totp.web.portal import SERVICE, current_portal, redirect_to
from pam_totp.web.session_cookie import current_session
from pam_totp.web.texts import gettext, lazy_gettext, ngettext

P = ParamSpec("P")

TEXTS = {
    Reason.NOT_AT_THE_DESK: lazy_gettext("You are not a member of the help desk. Nothing was changed."),
    Reason.ROOT_ONLY: lazy_gettext(
        "Only an administrator can change the tokens of administrators and of members of the help desk."
    ),
    Reason.NO_ACCOUNT: lazy_gettext("There is no account of this name. Only an administrator can change its tokens."),
    Reason.NO_TOKENS: lazy_gettext("This user has no token. Create a ticket, or assign a key fob."),
    Reason.NO_SUCH_TOKEN: lazy_gettext("This user no longer has that token."),
    Reason.TOKEN_CONFIRMED: lazy_gettext("The user has already put this token into use."),
    Reason.NOT_CONFIRMED: lazy_gettext("The user has not put a token into use yet. Create a ticket instead."),
    Reason.TOO_MANY_TOKENS: lazy_gettext("This user has the maximum number of tokens."),
    Reason.INVALID_TIME: lazy_gettext("Choose one of the listed times."),
    Reason.NOT_ASSIGNED: lazy_gettext("No user has a key fob with this serial number."),
    Reason.STOCK: lazy_gettext("The key fob cannot be assigned. Check the serial number."),
}
STOCK_TEXTS = {
    StockReason.NOT_IN_STOCK: lazy_gettext("No key fob with this serial number is in stock."),
    StockReason.ASSIGNED: lazy_gettext("Another user has the key fob with this serial number."),
    StockReason.TOO_MANY_TOKENS: lazy_gettext("This user has the maximum number of tokens."),
}
ALREADY_SHOWN = lazy_gettext("A code is shown only once. Create a new code if the user did not get it.")

LOGGED = {"ticket": "invite", "disable": "disable-token", "enable": "enable-token"}  # page -> name in the audit log

pages = Blueprint("desk", __name__, url_prefix="/desk")


def current_desk() -> Desk | None:
    """Return the desk for the current request, or None if the site has no desk."""
    portal = current_portal()
    config = portal.config
    if config.desk is None or config.store is None:
        return None
    return Desk(
        config.store,
        portal.factors,
        settings=config.desk,
        accounts=config.accounts,
        service=SERVICE,
        sink=config.sink,
        now=config.now,
        issuer=config.issuer,
        fields={"rhost": request.remote_addr},
    )


def is_at_the_desk() -> bool:
    """Return True if the signed-in user is a desk member now, and gave a code."""
    desk, state = current_desk(), current_session().state
    return desk is not None and state.by_code and state.user is not None and desk.is_member(state.user)


def requires_desk(view: Callable[P, Page]) -> Callable[P, Page]:
    """Return a page that shows `view` to desk members only."""

    @requires_sign_in
    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Page:
        if not is_at_the_desk():
            abort(404)
        try:
            return view(*args, **kwargs)
        except DeskError as e:
            return _problem_page(e)

    return guarded


def _desk() -> tuple[Desk, str]:
    """Return the desk, and the name of the signed-in desk member."""
    desk = current_desk()
    assert desk is not None
    return desk, requester().user


def _problem_page(error: DeskError) -> Page:
    page = render_template("desk_problem.html", text=text_of(error), user=_user())
    return page, 404 if error.reason is Reason.NO_ACCOUNT else 403


def text_of(error: DeskError) -> str:
    """Return the text about `error`, a denied or failed change by the desk."""
    if error.detail is not None:
        return gettext(STOCK_TEXTS.get(error.detail.reason, TEXTS[Reason.STOCK]))
    return gettext(TEXTS[error.reason])


def _user() -> str:
    """Return the user that the URL names, spelled as in the passwd entry."""
    name = request.args.get("user", "")
    found = current_portal().config.accounts.account(name)
    return name if found is None else found[0]


def _to_person(user: str) -> Page:
    return redirect(url_for("desk.person", user=user), code=303)


# ---- read


@pages.get("")
@requires_desk
def find() -> Page:
    desk, by = _desk()
    text = request.args.get("find", "").strip()
    found = desk.find(by, text) if text else None
    if found is not None and len(found.users) == 1:
        return _to_person(found.users[0])
    return render_template("desk.html", text=text, found=found)


@pages.get("/person")
@requires_desk
def person() -> Page:
    desk, by = _desk()
    return render_template("desk_person.html", person=desk.person(by, _user()))


# ---- change


@dataclass(frozen=True, slots=True)
class Kind:
    """A change that the desk offers: the texts of its page, its form, and the function that carries it out.

    The function gets the desk, the names of the desk member and the user, and the form. It returns a code to hand over,
    or a notice.
    """

    title: str
    text: str
    button: str
    form: type[FormWithProof]
    make: Callable[[Desk, str, str, Any], Handed | str]
    is_dangerous: bool = False


def _unlock(desk: Desk, by: str, user: str, form: Any) -> str:
    desk.unlock(by, user)
    return gettext("The count of wrong answers is now 0.")


def _temporary_code(desk: Desk, by: str, user: str, form: Any) -> Handed:
    return desk.temporary_code(by, user, int(form.valid.data) * HOUR)


def _ticket(desk: Desk, by: str, user: str, form: Any) -> Handed:
    return desk.ticket(by, user, int(form.valid.data) * DAY, request.args.get("token"))


def _disable(desk: Desk, by: str, user: str, form: Any) -> str:
    tokens = desk.disable(by, user, request.args.get("token"))
    current_portal().sessions.end_all_of(user)
    return ngettext("%(num)d token was disabled.", "%(num)d tokens were disabled.", len(tokens))


def _enable(desk: Desk, by: str, user: str, form: Any) -> str:
    tokens = desk.enable(by, user, request.args.get("token"))
    return ngettext("%(num)d token was enabled.", "%(num)d tokens were enabled.", len(tokens))


def _assign(desk: Desk, by: str, user: str, form: Any) -> str:
    token = desk.assign(by, form.serial.data, user)
    return gettext("The key fob %(serial)s was assigned. The user puts it into use by two codes.", serial=token.serial)


def _replace(desk: Desk, by: str, user: str, form: Any) -> str:
    old = request.args.get("old", "")
    owner, token = desk.replace(by, old, form.serial.data, lost=form.lost.data == "yes", user=user)
    current_portal().sessions.end_all_of(owner)
    return gettext("The key fob %(old)s was replaced by %(serial)s.", old=old, serial=token.serial)


KINDS = {
    "unlock": Kind(
        lazy_gettext("Unlock"),
        lazy_gettext("The count of wrong answers becomes 0. One code is then enough for a login."),
        lazy_gettext("Unlock"),
        ProofForm,
        _unlock,
    ),
    "temporary-code": Kind(
        lazy_gettext("Temporary code"),
        lazy_gettext(
            "A temporary code opens one login in place of a code. Make sure that you speak with the user: call back, or"
            " see the user's face."
        ),
        lazy_gettext("Create a temporary code"),
        TemporaryForm,
        _temporary_code,
    ),
    "ticket": Kind(
        lazy_gettext("Ticket"),
        lazy_gettext(
            "With a ticket, the user adds a new token, which then replaces the tokens that the user has now. Make sure"
            " that you speak with the user: call back, or see the user's face."
        ),
        lazy_gettext("Create a ticket"),
        NewTicketForm,
        _ticket,
    ),
    "disable": Kind(
        lazy_gettext("Disable tokens"),
        lazy_gettext("The codes are refused until the token is enabled again."),
        lazy_gettext("Disable"),
        ProofForm,
        _disable,
        is_dangerous=True,
    ),
    "enable": Kind(
        lazy_gettext("Enable tokens"),
        lazy_gettext("The codes are accepted again."),
        lazy_gettext("Enable"),
        ProofForm,
        _enable,
    ),
    "assign": Kind(
        lazy_gettext("Assign a key fob"),
        lazy_gettext("The user gets a key fob that is in stock, and puts it into use by two codes."),
        lazy_gettext("Assign"),
        AssignForm,
        _assign,
    ),
    "replace": Kind(
        lazy_gettext("Replace a key fob"),
        lazy_gettext("Another key fob in stock replaces this key fob."),
        lazy_gettext("Replace"),
        ReplaceForm,
        _replace,
    ),
}


@pages.get("/<any({}):what>".format(", ".join(f"'{name}'" for name in KINDS)))
@requires_desk
def change_form(what: str) -> Page:
    desk, by = _desk()
    user = _user()
    desk.require(by, user, LOGGED.get(what, what))
    return _change_page(what, user, KINDS[what].form())


@pages.post("/<any({}):what>".format(", ".join(f"'{name}'" for name in KINDS)))
@requires_desk
def change(what: str) -> Page:
    desk, by = _desk()
    user, kind = _user(), KINDS[what]
    form = kind.form()
    desk.require(by, user, LOGGED.get(what, what))
    if not (form.validate() and _is_in_stock(desk, by, form)):
        return _change_page(what, user, form)
    is_proved, _ = desk.prove(requester(form.proof.data))
    if not is_proved:
        if _is_shown(what, user):  # the form was sent twice: show the code that the first request created
            return redirect_to("desk.code")
        form.proof.errors = [gettext(REFUSED)]
        return _change_page(what, user, form)
    made = kind.make(desk, by, user, form)
    if isinstance(made, Handed):
        current_session().set_to_hand_over(made)
        return redirect_to("desk.code")
    flash(made)
    return _to_person(user)


def _is_in_stock(desk: Desk, by: str, form: Any) -> bool:
    """Return True if the form has no serial number, or the number of a key fob in stock. Use up no code."""
    if "serial" not in form:
        return True
    try:
        desk.require_in_stock(by, form.serial.data)
    except DeskError as e:
        form.serial.errors = [text_of(e)]
        return False
    return True


def _change_page(what: str, user: str, form: FormWithProof) -> Page:
    own = current_portal().factors.of(requester().user)
    form.proof.label.text = gettext("A new code from your own token")
    form.proof.description = Markup("{} {}").format(
        gettext("Never ask the user for a code."), new_code_hint(own, current_portal().config.now())
    )
    names = {name: request.args[name] for name in ("token", "old") if name in request.args}
    page = render_template("desk_change.html", what=what, kind=KINDS[what], user=user, form=form, names=names)
    return (page, 422) if form.errors else page


def _is_shown(what: str, user: str) -> bool:
    """Return True if the change `what` has created a code for `user` that the desk member must still hand over."""
    kept = current_session().to_hand_over
    if kept is None or kept.user != user:
        return False
    return what == ("temporary-code" if kept.token is None else "ticket")


# ---- a code to hand over


@pages.get("/code")
@requires_desk
def code() -> Page:
    kept = current_session().to_hand_over
    if kept is None:
        flash(gettext(ALREADY_SHOWN))
        return redirect_to("desk.find")
    return render_template("desk_code.html", handed=kept)


@pages.post("/code")
@requires_desk
def code_handed_over() -> Page:
    kept = current_session().to_hand_over
    current_session().set_to_hand_over(None)
    return redirect_to("desk.find") if kept is None else _to_person(kept.user)
