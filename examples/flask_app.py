"""A Flask application with a sign-in by system password and code: `flask --app flask_app run --cert=adhoc`.

The account of the server must be in the group shadow, and be listed in /etc/pam_totp.toml: [clients] www-data = "web".
Before real use, add a limit on guesses of passwords. docs/web.md contains an example.
"""

import os

import pam
from flask import Flask, redirect, render_template_string, request, session, url_for
from flask_wtf.csrf import CSRFProtect
from markupsafe import escape
from werkzeug.wrappers import Response

from pam_totp import client

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or os.urandom(32)
app.config.update(SESSION_COOKIE_SAMESITE="Lax", SESSION_COOKIE_SECURE=not app.debug)
SOCKET = os.environ.get("PAM_TOTP_SOCKET", client.DEFAULT_SOCKET)
CSRFProtect(app)

PAGE = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><h1>{{ title }}</h1>{% if problem %}<p role="alert">{{ problem }}</p>{% endif %}
<form method="post"><input type="hidden" name="csrf_token" value="{{ csrf_token() }}">
{% for name, label, attributes in fields %}<p><label for="{{ name }}">{{ label }}</label> <input id="{{ name }}"
name="{{ name }}" required autocapitalize="off" spellcheck="false" {{ attributes | xmlattr }}></p>{% endfor %}
<button>Go on</button></form>{% if title == "Your code" %}<a href="?recovery=yes">Use a recovery code</a>{% endif %}"""
USER = ("user", "User name", {"autocomplete": "username"})
PASSWORD = ("password", "Password", {"autocomplete": "current-password", "type": "password"})
CODE = ("code", "One-time code", {"autocomplete": "one-time-code", "inputmode": "numeric"})
RECOVERY = ("code", "Recovery code", {"autocomplete": "off"})  # letters: not for a keyboard of digits


def page(title: str, problem: str | None, *fields: tuple[str, str, dict[str, str]]) -> str:
    return render_template_string(PAGE, title=title, problem=problem, fields=fields)


def password_is_right(user: str, password: str) -> bool:
    """Return True if the system password is right. A blank password is always wrong."""
    return bool(password) and pam.authenticate(user, password, service="pam_totp-portal", resetcreds=False)


@app.route("/login", methods=["GET", "POST"])
def login() -> str | Response:
    problem = None
    if request.method == "POST":
        user = request.form.get("user", "")
        if password_is_right(user, request.form.get("password", "")):
            session.clear()
            session["halfway"] = user  # this value gives access only to the page for the code
            return redirect(url_for("code"))
        problem = "User name and password do not match."
    return page("Sign in", problem, USER, PASSWORD)


@app.route("/code", methods=["GET", "POST"])
def code() -> str | Response:
    if "halfway" not in session:
        return redirect(url_for("login"))
    problem = None
    if request.method == "POST":
        try:
            outcome = client.verify(
                session["halfway"], request.form.get("code", ""), service="web", rhost=request.remote_addr, path=SOCKET
            )
            accepted, problem = bool(outcome), " ".join(outcome.messages)
        except client.ClientError as e:
            app.logger.error("%s", e)
            accepted, problem = False, "Codes cannot be checked now; try again later."
        if accepted:
            session["user"] = session.pop("halfway")
            return redirect(url_for("private"))
    return page("Your code", problem, RECOVERY if "recovery" in request.args else CODE)


@app.get("/")
def private() -> str | Response:
    return f"Hello, {escape(session['user'])}." if "user" in session else redirect(url_for("login"))
