"""A search for unclear expressions in comments, docstrings, messages and documents. `make lint` runs this program.

Rules:
- `EXPRESSIONS` lists expressions that are hard to read, each with a replacement (see "Words" in CONTRIBUTING.md).
- In Python and C, the program checks only comments and strings. In Markdown, it skips code blocks.
- `ALLOWED` lists the files that need such an expression, each with the reason.
- The exit status is 1 if there is a finding.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).resolve().parent.parent

# Regular expressions, each with the replacement that the program prints.
EXPRESSIONS = {
    r"(?<!user=)(?:nobody|somebody|whoever)": "name the actor: no user, an account, the caller",
    r"who (?:is|has|ends|asks|listens|waits|comes)": "name the actor, then the verb",
    r"(?:is|are|was|were) (?:said|told)": "is printed, is logged, is given",
    r"told of|told apart": "is notified, is distinguished",
    r"forgotten": "deleted, released",
    r"stays as it is": "is unchanged",
    r"nothing but|none but": "only",
    r"say (?:whose|which)": "name the user, name the token",
    r"strangers?": "unknown user, untrusted account",
    r"the law:": "Rules:",
    r"(?:becomes|became) of": "the result, the outcome",
    r"as it should be": "valid, correct",
}
_EXPRESSION = re.compile("|".join(rf"(?P<e{i}>\b(?:{text}))" for i, text in enumerate(EXPRESSIONS)), re.IGNORECASE)

# Permitted expressions: the file, words beside the expression, and the reason.
ALLOWED = {
    ("tools/words.py", ""): "the list itself",
    ("tests/core/test_upkeep.py", ".nobody"): "the name of a file in the store",
    ("tests/logins/test_service.py", "nobody"): "the account of that name",
    ("tests/fleet/test_doctor_authority.py", "nobody"): "the account of that name",
    ("tests/setup/test_isolation.py", "for user in root alice bob nobody"): "the account of that name",
    ("tests/web/test_client.py", "nobody = "): "the account of that name, in a site file",
}
# Files to skip, because they contain data or texts of other programs.
_DATA = re.compile(r"tests/(?:fuzz|torture)/corpus/|tests/\w+/data/|/migrations/|requirements.*\.txt$|^LICENSE$")
_READ = re.compile(
    r"\.(?:py|c|md|html|sh|[158])$|(?:^|/)Makefile$|^\.ci/|/data/(?:install|uninstall|command)$|\.(?:service|socket)$"
)


class Text(NamedTuple):
    """A comment, string or document, and the line on which it starts."""

    line: int
    text: str


def prose(path: Path) -> Iterator[Text]:
    """Yield the comments and strings of code, or the text of a document."""
    content = path.read_text("utf-8")
    if path.suffix == ".py":
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(content).readline):
            if token.type in kinds:
                yield Text(token.start[0], token.string)
    elif path.suffix == ".c":
        for found in re.finditer(r'/\*.*?\*/|"(?:\\.|[^"\\])*"', content, re.DOTALL):
            yield Text(content.count("\n", 0, found.start()) + 1, found[0])
    elif path.suffix == ".md":
        yield Text(1, re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), content, flags=re.DOTALL))
    else:
        yield Text(1, content)


def findings(paths: list[str]) -> Iterator[str]:
    """Yield a line for each unclear expression in the files `paths`."""
    for name in paths:
        for text in prose(TREE / name):
            if text.text == '"nobody"':  # the name of an account
                continue
            joined = re.sub(r"\n[ \t]*(?:#|\*)?[ \t]*", lambda gap: f"\n{' ' * (len(gap[0]) - 1)}", text.text)
            for found in _EXPRESSION.finditer(re.sub(r"\s", " ", joined)):
                if any(name == file and words in joined for file, words in ALLOWED):
                    continue
                advice = list(EXPRESSIONS.values())[int((found.lastgroup or "e0")[1:])]
                line = text.line + joined.count("\n", 0, found.start())
                yield f"{name}:{line}: '{found[0]}': {advice}"


def main(arguments: list[str]) -> int:
    """Check all tracked files, or only those below the given paths. Return the exit status."""
    listed = subprocess.run(["git", "ls-files", "--", *arguments], cwd=TREE, text=True, capture_output=True, check=True)
    paths = [p for p in listed.stdout.splitlines() if _READ.search(p) and not _DATA.search(p) and (TREE / p).is_file()]
    found = list(findings(paths))
    print("\n".join(found) if found else f"no unclear expression in {len(paths)} files")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
