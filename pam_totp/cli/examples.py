"""What each command's help shows of its use. A test has all of it understood by the command line itself."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "enroll": (
        "pam-totp enroll alice",
        "pam-totp enroll alice --type hotp --name fob --secret-stdin < key.txt",
    ),
    "list": ("pam-totp list", "pam-totp list alice --json"),
    "rename": ("pam-totp rename alice phone old-phone",),
    "enable-token": ("pam-totp enable-token alice fob",),
    "disable-token": ("pam-totp disable-token alice fob",),
    "remove": ("pam-totp remove alice old-phone", "pam-totp remove alice --all"),
    "qr": ("pam-totp qr alice", "pam-totp qr alice phone --qr png=alice.png"),
    "recovery": ("pam-totp recovery alice",),
    "verify": ("pam-totp verify alice 755224", "pam-totp verify alice < code.txt"),
    "resync": (
        "pam-totp resync alice 755224 287082",
        "pam-totp resync alice --token fob --port /dev/ttyUSB0",
    ),
    "unlock": ("pam-totp unlock alice",),
    "import": (
        "pam-totp import pskc box.xml --password-file password --map serials.csv",
        "pam-totp import google-authenticator --homes /home --dry-run",
    ),
    "export": ("pam-totp export alice --format pskc --password-file password",),
    "enable": (
        "pam-totp enable sudo --dry-run",
        "pam-totp enable sshd --first-factor key",
        "pam-totp enable sudo --keep",
    ),
    "disable": ("pam-totp disable sudo",),
    "doctor": ("pam-totp doctor", "pam-totp doctor sshd --json"),
    "rehearse": ("pam-totp rehearse sudo alice", "pam-totp rehearse sshd alice --stack new/sshd"),
    "policy": ("pam-totp policy sshd", "pam-totp policy sshd -- look_ahead=20 nullok"),
    "serve": ("pam-totp serve --socket /run/pam_totp/socket --log stderr",),
    "portal": ("pam-totp portal", "pam-totp portal --behind-tls-proxy --host login.example.org"),
}


def shown(command: str) -> str:
    """The end of that command's help."""
    return "\n  ".join(("examples:", *EXAMPLES[command]))
