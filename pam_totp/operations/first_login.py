"""Enrolment at the first login: the dialogue with the owner of a right ticket, without I/O.

Rules:
1. Every text that the user must see is in a prompt. Programs drop, garble or repeat other texts of a PAM module.
2. A prompt is ASCII of at most MAX_PROMPT bytes. The QR code is the exception. The QR code is shown only on request,
   because some ssh clients exit at characters outside ASCII. The QR code is one prompt of at most MAX_PICTURE bytes,
   for a terminal of 80 × 24.
3. Every prompt echoes the answer. Password authentication of sshd, which cannot show a text, therefore fails at the
   first prompt.
4. At most MAX_ROUNDS prompts ask for a code. MAX_WRONG wrong codes or MAX_EMPTY empty answers end the enrolment. A
   missing answer, and an answer equal to the password, end the enrolment immediately, because a program gives such
   answers.
5. Nothing changes before the right code. The next login with the same ticket shows the same key.
6. The right code enrols the user durably. Then the login is accepted with any answer to the last prompt.
7. A wrong code is not a failure of law 8 (see rule 4 of `tickets`).
"""

from __future__ import annotations

from pam_totp.core.answer import Answer
from pam_totp.core.lean import TYPE_CHECKING
from pam_totp.operations.audit_log import NO_ANSWER
from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.conversation import Conversation, Log, Pause, Typed, Waits
from pam_totp.operations.qr_text import side_by_side
from pam_totp.operations.tickets import Confirmation, Invitation
from pam_totp.operations.verifier import Result, Verifier

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PROMPT = 512  # bytes
MAX_PICTURE = 4095  # bytes: the text of one packet to the relay
MAX_ROUNDS = 8
MAX_WRONG = 3
MAX_EMPTY = 2
NOT_CONFIRMED = "not-confirmed"  # the reason of a refusal: no right code followed the ticket
TICKET_ENDED = "ticket-ended"  # the reason of a refusal: the ticket was used or replaced meanwhile, or has expired
NOTHING_CHANGED = "Not enrolled. Log in with the ticket again before it expires to get the same key."
PRESS_ENTER = "Press Enter: "
WRONG = "Wrong code. Wait for the next code, and check the clock of the phone."
WRONG_FOB = "Wrong codes. Type two new codes in a row, in one line."
_DIGITS = {6: "six", 7: "seven", 8: "eight"}
_LINE = 70  # characters of a line of a key
_PER_LINE = 2  # recovery codes in a line
_SHORT = 3  # bytes: a q with spaces. A longer answer can be a code or a password, which must not be copied
_MAX_NAME = 48  # characters of a serial number in a prompt


class FirstLogin:
    """The enrolment of one login. `ticket` is the right ticket, and `invitation` the facts for its owner."""

    def __init__(self, invitation: Invitation, verifier: Verifier, *, ticket: Answer, log: Log) -> None:
        self._invitation, self._verifier, self._ticket, self._log = invitation, verifier, ticket, log
        self._picture = picture_prompt(invitation)

    def run(self, conversation: Conversation, *, is_sshd: bool) -> Waits[Result]:
        """Ask for the first code. Return ACCEPTED after a right code, otherwise REFUSED."""
        password = yield from conversation.first_pass()
        problem, text = yield from self._ask(conversation, password)
        if problem is None:
            return Result.ACCEPTED
        self._log("refused", reason=problem)
        if not is_sshd:
            conversation.show(text, error=True)
        return Result.REFUSED

    def _ask(self, conversation: Conversation, password: Typed | None) -> Waits[tuple[str | None, str]]:
        """Return the reason for the log, and the text for the user. The reason is None after a right code."""
        wrong = empty = 0
        prompt = key_prompt(self._invitation)
        for _ in range(MAX_ROUNDS):
            typed = yield from conversation.ask(prompt, echo=True, meanwhile=None)
            if typed is None or (password and typed == password):
                return NO_ANSWER if typed is None else NOT_CONFIRMED, NOTHING_CHANGED
            if not typed or typed.isspace():
                empty += 1
                if empty == MAX_EMPTY:
                    return NO_ANSWER, NOTHING_CHANGED
            elif self._picture is not None and _asks_for_picture(typed):
                prompt = self._picture
                continue
            else:
                confirmation = yield from self._confirm(typed)
                if confirmation.recovery_codes is not None:
                    last = recovery_prompt(confirmation.recovery_codes)
                    yield from conversation.ask(last, echo=True, meanwhile=None)
                    return None, ""
                if not confirmation.is_open:
                    return TICKET_ENDED, REFUSED
                wrong += 1
                if wrong == MAX_WRONG:
                    return NOT_CONFIRMED, NOTHING_CHANGED
                self._log("refused", reason=NOT_CONFIRMED)
            prompt = key_prompt(self._invitation, again=wrong > 0)
        return NOT_CONFIRMED, NOTHING_CHANGED

    def _confirm(self, typed: Typed) -> Waits[Confirmation]:
        """Return the decision on a first code. Log the enrolment, or delay the refusal."""
        first = Answer.parse(typed)
        try:
            confirmation: Confirmation = yield self._verifier.confirm(self._ticket, first)
        finally:
            first.wipe()
        if confirmation.recovery_codes is None:
            yield Pause(self._verifier.delay)
            return confirmation
        for verb, fields in confirmation.lines(self._invitation):
            self._log(verb, **fields)
        return confirmation


def key_prompt(invitation: Invitation, *, again: bool = False) -> str:
    """Return the prompt for the first code, with the key. `again` is True after a wrong code.

    The prompt begins with a newline, because ssh shows the user's name before the first line.
    """
    has_picture = picture_prompt(invitation) is not None
    if invitation.key is None:
        lines = [WRONG_FOB if again else "The ticket is right.", f"Take the token {_ascii(invitation.serial or '?')}."]
        return _prompt(lines, _question(invitation))
    kind = "" if invitation.type == "totp" else "counter-based, "
    special = "".join(f", {_ascii(text)}" for text in invitation.unusual if "digits" not in text)
    lines = [
        WRONG if again else "The ticket is right. Add this key to an authenticator app:",
        "",
        *_wrapped(invitation.key.split(" ")),
        "",
    ]
    if kind or special or invitation.digits != 6:
        lines.append(f"Choose: {kind}{invitation.digits} digits{special}")
    return _prompt(lines, _question(invitation, has_picture=has_picture))


def picture_prompt(invitation: Invitation) -> str | None:
    """Return the prompt with the QR code, or None if the QR code is missing or the prompt would be too long."""
    if invitation.picture is None or invitation.key is None:
        return None
    caption = "Scan the left picture on a dark screen, the right picture on a light screen."
    lines = [*side_by_side(invitation.picture), caption, *_wrapped(invitation.key.split(" "))]
    prompt = _prompt(lines, _question(invitation))
    return prompt if len(prompt.encode()) <= MAX_PICTURE else None


def recovery_prompt(codes: Iterable[str]) -> str:
    """Return the last prompt, with the recovery codes."""
    shown = list(codes)
    pairs = [shown[i : i + _PER_LINE] for i in range(0, len(shown), _PER_LINE)]
    title = "You are enrolled. Keep these recovery codes: each replaces one code."
    return _prompt([title, "", *("    " + "    ".join(pair) for pair in pairs), ""], PRESS_ENTER)


def _question(invitation: Invitation, *, has_picture: bool = False) -> str:
    digits = _DIGITS.get(invitation.digits, str(invitation.digits))
    if invitation.key is None:
        return "Type two codes in a row from the token, in one line: "
    wanted = f"the {digits} digits the app shows" if invitation.codes_needed == 1 else "two codes in a row from the app"
    return f"Type {wanted}{', or q for a QR code' if has_picture else ''}: "


def _prompt(lines: list[str], question: str) -> str:
    return "\n" + "".join(f"{line}\n" for line in lines) + question


def _wrapped(groups: list[str]) -> list[str]:
    """Return the groups of a key in lines."""
    per_line = _LINE // (len(groups[0]) + 1)
    return ["    " + " ".join(groups[i : i + per_line]) for i in range(0, len(groups), per_line)]


def _ascii(text: str) -> str:
    return text[:_MAX_NAME].encode("ascii", "replace").decode("ascii")


def _asks_for_picture(typed: Typed) -> bool:
    return len(typed) <= _SHORT and typed.strip().lower() == b"q"
