"""A demonstration of logins with one-time codes, through the real libpam and the real module: `make demo`.

- The demo presses the simulated token's button and types all answers. The user only watches.
- The demo writes only to a temporary folder, and does not require root.
- The exit status is 0 if every step had the expected result, else 1. Two expected results are refusals.
"""

from __future__ import annotations

import io
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from demo.scene import MODULE, USER, Attempt, PluggedToken, Scene, make_token, plugged_in, wait_until
from demo.screen import Screen, token_picture
from pam_totp.core.oath import totp
from pam_totp.formats.otpauth import typed_secret

BY_SERVICE, BY_HELPER = "demo", "demo-helper"  # PAM services, named after the process that verifies codes
PRESSES_IN_THE_POCKET = 40  # unused presses before a login: more than look_ahead, fewer than resync_window
PRESSES_UNSEEN = 15  # unused presses before `pam-totp resync`: more than look_ahead
TIMED_LOGINS = 20
PRESS_INTERVAL = 0.2  # seconds between presses while `pam-totp resync` waits for codes
PERIOD = 30  # seconds for which a phone shows a code
STEP_RESERVE = 5  # minimum seconds from the computation of the phone's code to the next time step
LOG_LINES = 6  # lines of the service's log, printed at the end
ACCEPTED, REFUSED = "success", "auth_err"  # libpam's results
MEANING = {ACCEPTED: "accepted", REFUSED: "refused"}


def main(module: Path | str = MODULE) -> int:
    begun = time.monotonic()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # print ? for a missing block character
    screen = Screen()
    screen.title("pam_totp: one-time codes as the second factor of a login")
    screen.text("Just watch: the demo presses the button of a simulated token, and types every answer itself.")
    for number in (signal.SIGTERM, signal.SIGHUP):  # remove the folder after these signals, as after Ctrl-C
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with tempfile.TemporaryDirectory(prefix="pam_totp-demo-") as folder:
        scene = Scene(Path(folder), module)
        try:
            demonstrate(scene, screen)
        finally:
            scene.close()
    screen.table()
    took = f"{time.monotonic() - begun:.0f} s"
    print(
        f"\nA step had an unexpected result ({took})."
        if screen.failed
        else f"\nEvery step had the expected result ({took})."
    )
    return int(screen.failed)


def demonstrate(scene: Scene, screen: Screen) -> None:
    scene.start_service()
    scene.configure(BY_SERVICE, socket=str(scene.socket))
    scene.configure(BY_HELPER, socket="none")
    screen.text(f"All files are in {scene.folder}. The user is {USER}. Each PAM service has one line:")
    screen.text(f"auth required {MODULE} ...", "36")

    screen.step("Create a token, and enrol it with its seed and its first code")
    made = make_token(scene.folder)
    with plugged_in(made.file, scene.folder / "token") as token:
        screen.text(f"The simulated token {made.serial} runs at {token.port}. A press of its button shows a code:")
        (code,) = token.press()
        screen.lines(token_picture(code, made.serial))
        words = (USER, "--type", "hotp", "--name", "fob", "--serial", made.serial, "--counter", made.counter)
        screen.command("pam-totp", "enroll", *words, "--secret-stdin")
        done = scene.pam_totp("enroll", *words, "--secret-stdin", stdin=f"hex:{made.seed}\n{code}\n")
        screen.text(done.stdout + done.stderr)
        screen.result(
            "a key fob is enrolled, and its first code counts as used",
            f"enrolled with the code {code}",
            right=done.returncode == 0,
        )
        hardware_token(scene, screen, token)
        resynchronise(scene, screen, token)
        phone(scene, screen)
        time_logins(scene, screen, token)
    show_log(scene, screen)


def log_in(
    scene: Scene, screen: Screen, promise: str, *answers: str, expected: str = ACCEPTED, service: str = BY_SERVICE
) -> Attempt:
    """Log in once through libpam, and record whether libpam's result was `expected`. Return the attempt."""
    attempt = scene.log_in(answers, service)
    screen.text("\n".join(attempt.dialogue))
    expectation = "as expected" if attempt.result == expected else f"expected: {MEANING[expected]}"
    meaning = MEANING.get(attempt.result, "error")
    happened = f"{meaning}, {expectation}: PAM_{attempt.result.upper()} after {1000 * attempt.seconds:.0f} ms"
    screen.result(promise, happened, right=attempt.result == expected)
    return attempt


def hardware_token(scene: Scene, screen: Screen, token: PluggedToken) -> None:
    screen.step("Press the button, and log in with the new code")
    (code,) = token.press()
    log_in(scene, screen, "the service accepts a code", code)

    screen.step("Log in with the same code again: the code must be refused")
    log_in(scene, screen, "the service refuses a used code", code, expected=REFUSED)

    screen.step("Log in without the service: the module starts a helper")
    (code,) = token.press()
    log_in(scene, screen, "a helper accepts a code", code, service=BY_HELPER)

    screen.step(f"Press the button {PRESSES_IN_THE_POCKET} times without a login: the next code must be refused")
    token.press(PRESSES_IN_THE_POCKET)
    (code,) = token.press()
    log_in(scene, screen, "a code far ahead of the counter is refused", code, expected=REFUSED)
    screen.text(
        "The token's counter is too far ahead. Two codes in a row, one at each prompt, resynchronise the token:"
    )
    codes = (*token.press(), *token.press())
    log_in(scene, screen, "two codes in a row resynchronise the token", *codes)


def resynchronise(scene: Scene, screen: Screen, token: PluggedToken) -> None:
    screen.step(f"Press the button {PRESSES_UNSEEN} times, then resynchronise over the serial port")
    token.press(PRESSES_UNSEEN)
    screen.command("pam-totp", "resync", USER, "--port", str(token.port))
    with scene.talk_to_pam_totp("resync", USER, "--port", str(token.port)) as resync:
        screen.text(resync.read_until("\n"))
        while not resync.has_ended():
            token.press_by_hand()
            time.sleep(PRESS_INTERVAL)
        status, output = resync.finish()
    screen.text(output)
    screen.result("pam-totp resync resynchronises the token", f"resync ended with status {status}", right=status == 0)
    (code,) = token.press()
    log_in(scene, screen, "the service accepts the next code", code)


def phone(scene: Scene, screen: Screen) -> None:
    screen.step("Enrol a phone: scan the QR code, confirm with a code, log in")
    screen.command("pam-totp", "enroll", USER, "--name", "phone")
    # The output goes through a pipe, to which pam-totp prints keys only with `--output -`.
    with scene.talk_to_pam_totp("enroll", USER, "--name", "phone", "--output", "-") as enrolment:
        key_line, details, *qr_lines, question = enrolment.read_until(": ").splitlines() or ["", "", ""]
        screen.text(f"{key_line}\n{details}")
        screen.qr_code(qr_lines)
        drawn = len(qr_lines) > 1  # `enroll` prints one line with the reason if segno is missing
        screen.result("the QR code of a phone is drawn", f"QR code drawn in {len(qr_lines)} lines", right=drawn)
        key = typed_secret(key_line.removeprefix("key: "))
        wait_until(lambda: time.time() % PERIOD < PERIOD - STEP_RESERVE, "the phone's next time step")
        now = int(time.time())
        # Confirm the enrolment with the code of the previous step, which is still accepted. The login can then use the
        # code of the current step at once.
        first = totp(key, now - PERIOD)
        enrolment.answer(first)
        status, output = enrolment.finish()
    screen.text(f"{question}{first}\n{output}")
    screen.result(
        "a phone is enrolled by its QR code and its first code", f"enroll ended with status {status}", right=status == 0
    )
    log_in(scene, screen, "the service accepts a code of the phone", totp(key, now))


def time_logins(scene: Scene, screen: Screen, token: PluggedToken) -> None:
    screen.step(f"Measure {2 * TIMED_LOGINS} logins: each succeeds only after its used code is recorded on disk")
    for service, way in ((BY_SERVICE, "through the service"), (BY_HELPER, "through a helper")):
        attempts = [scene.log_in([code], service) for code in token.press(TIMED_LOGINS)]
        median = statistics.median(attempt.seconds for attempt in attempts)
        accepted = sum(attempt.result == ACCEPTED for attempt in attempts)
        screen.result(
            f"a login takes {1000 * median:.1f} ms {way}",
            f"{accepted} of {TIMED_LOGINS} logins {way} succeeded; median {1000 * median:.1f} ms",
            right=accepted == TIMED_LOGINS,
        )


def show_log(scene: Scene, screen: Screen) -> None:
    print()
    screen.title("First lines of the service's log")
    lines = scene.log.read_text().splitlines()
    screen.text("\n".join(lines[:LOG_LINES]))
    screen.text(f"... and {max(0, len(lines) - LOG_LINES)} more lines")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ndemo interrupted by Ctrl-C (the temporary folder was removed)", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
