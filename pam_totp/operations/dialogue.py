"""One login as a dialogue without I/O: prompts, decisions and messages, with a result.

Rules:
1. A dialogue has no socket, thread, clock or sleep. A dialogue yields each wait to its driver: the service, the helper,
   a test.
2. A dialogue shows prompts and texts through a `Conversation`. Dialogues share no state.
3. Only the results ACCEPTED and IGNORED let a user pass.
4. Every refusal has the same delay. The dialogue asks once more after the first refusal, regardless of the answer and
   the user (law 5). The last refusal shows the same text for every reason. Rules 7 and 9 state the exceptions.
5. The waits between two prompts do not depend on the user, except for grace and `nullok`.
6. No lock is held during a prompt.
7. With `forward_pass`, the next module checks the password after the code. The dialogue hides the verdict until then:
   it shows one prompt, no text, and the same delay after every answer.
8. A dialogue wipes all answers when it ends.
9. In sshd, the text of a refusal precedes the second prompt, and no text follows the last answer. sshd omits the line
   `PAM: Authentication failure for USER from ADDRESS` if a module shows a text after the last answer.
10. A right enrolment ticket is not an accepted answer. The dialogue continues with `first_login`, which has its own
    prompts.
"""

from __future__ import annotations

from pam_totp.core.answer import Answer
from pam_totp.core.settings import NEXT_PROMPT, Settings
from pam_totp.operations.audit_log import NO_ANSWER
from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.conversation import Conversation, Log, Pause, Typed, Waits
from pam_totp.operations.first_login import FirstLogin
from pam_totp.operations.verifier import Result, Verdict, Verifier
from pam_totp.store import StoreError


class Dialogue:
    """One login. `verifier` decides on its answers. `is_sshd` is True if the host program is sshd."""

    def __init__(self, settings: Settings, verifier: Verifier, *, log: Log, is_sshd: bool = False) -> None:
        self._settings, self._verifier, self._log = settings, verifier, log
        self._is_sshd = is_sshd
        self._answers: list[Answer] = []  # to be wiped

    def run(self, conversation: Conversation) -> Waits[Result]:
        try:
            return (yield from self._run(conversation))
        except StoreError as e:
            self._log("error", problem=str(e))
            return Result.UNAVAILABLE
        finally:
            self._verifier.wipe()
            for answer in self._answers:
                answer.wipe()

    def _run(self, conversation: Conversation) -> Waits[Result]:
        settings, log = self._settings, self._log
        if settings.debug:
            shown = {
                n: "yes" if v is True else v for n, v in settings.facts().items() if v is not False and n != "user"
            }
            log("debug", **shown)
        if (question := self._verifier.before_prompt()) is not None:
            exemption: Verdict | None = yield question
            if exemption is not None:
                log(exemption.result.value, **exemption.fields)
                return exemption.result

        if settings.first_pass in ("try_first_pass", "use_first_pass"):
            typed = yield from conversation.first_pass()
            if typed is not None:
                verdict = yield from self._decide(typed, conversation, prompted=False)
                if verdict.accepted:
                    return Result.ACCEPTED
            if settings.first_pass == "use_first_pass":
                if typed is None:
                    log("refused", reason=NO_ANSWER)
                if not self._is_sshd:
                    conversation.show(REFUSED, error=True)
                return Result.REFUSED

        meanwhile = self._verifier.while_typing()
        typed = yield from conversation.ask(settings.prompt, echo=settings.echo, meanwhile=meanwhile)
        if typed is None:
            log("refused", reason=NO_ANSWER)
            return Result.NO_ANSWER
        verdict = yield from self._decide(typed, conversation)
        asks_again = settings.second_prompt
        if asks_again and self._is_sshd and not verdict.accepted and verdict.invitation is None:
            conversation.show(REFUSED, error=True)
        while asks_again and not verdict.accepted and verdict.invitation is None:
            typed = yield from conversation.ask(NEXT_PROMPT, echo=settings.echo, meanwhile=None)
            if typed is None:
                log("refused", reason=NO_ANSWER)
                break
            verdict = yield from self._decide(typed, conversation)
            asks_again = verdict.asks_again
        if verdict.accepted:
            return Result.ACCEPTED
        if verdict.invitation is not None:
            enrolment = FirstLogin(verdict.invitation, self._verifier, ticket=self._answers[-1], log=log)
            return (yield from enrolment.run(conversation, is_sshd=self._is_sshd))
        if settings.first_pass != "forward_pass" and not self._is_sshd:
            conversation.show(REFUSED, error=True)
        return Result.REFUSED

    def _decide(self, typed: Typed, conversation: Conversation, *, prompted: bool = True) -> Waits[Verdict]:
        """Return the verdict on an answer, and delay a refusal. `prompted` is False for the answer of an earlier
        module.

        With `forward_pass`, pass the password to the next module after a refusal too. Otherwise the behaviour of that
        module would show whether the codes were right.
        """
        forwards = self._settings.first_pass == "forward_pass"
        answer = Answer.parse_behind_password(typed) if forwards else Answer.parse(typed)
        self._answers.append(answer)
        try:
            verdict: Verdict = yield self._verifier.decide(answer, prompted=prompted)
        except StoreError:
            yield Pause(self._verifier.delay)  # the delay must hide the length of the search, even if the disk is full
            raise
        password = answer.password(verdict.code_lengths)
        if password:
            conversation.hand_on(password)
        if verdict.invitation is not None:
            self._log("presented", **verdict.fields)
            return verdict
        self._log(verdict.result.value, **verdict.fields)
        if forwards or not verdict.accepted:
            yield Pause(self._verifier.delay)
        if verdict.accepted and not forwards:
            for message in verdict.messages:
                conversation.show(message, error=False)
        return verdict
