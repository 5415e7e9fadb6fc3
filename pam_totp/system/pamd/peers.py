"""The lines of other modules that ask for a code: `enable` replaces them, and `disable` restores them. Pure.

Rules:
- A replaced line remains in the file as a comment, at the same position.
- The new line has the same position if a jump may skip the replaced line, so that every jump keeps its target.
- A line in an included file is never replaced, because other services may include this file too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pam_totp.system.pamd import analysis, edit
from pam_totp.system.pamd.edit import FirstFactor
from pam_totp.system.pamd.stack import Handler, ReadService, StackError, flatten, parse

_REPLACED = "# replaced by pam_totp: "


def lines(name: str, stack: Sequence[Handler]) -> list[Handler]:
    """Return the lines of other code modules in the stack of the service `name`.

    Raise StackError if any of these lines is in an included file.
    """
    found = [stack[i] for i in analysis.other_code_modules(stack)]
    for handler in found:
        if handler.file != name:
            what = f"{handler.file}:{handler.rule.first + 1}: {handler.rule.module} asks for a code too"
            raise StackError(f"{what}, and other services may include this file (delete that line by hand first)")
    return found


def replace(text: str, name: str, added_lines: str, read: ReadService, first: FirstFactor) -> tuple[str, str]:
    """Return `text` with `added_lines` in place of the lines of other code modules, and those lines.

    Raise StackError if no position is safe.
    """
    stack = flatten(name, lambda other: text if other == name else read(other))
    found = lines(name, stack)
    physical = text.split("\n")
    numbers = [number for h in found for number in range(h.rule.first, h.rule.last + 1)]
    replaced = "".join(f"{physical[number]}\n" for number in numbers)
    for number in numbers:
        physical[number] = _REPLACED + physical[number]
    commented = "\n".join(physical)
    is_jumped_over = any(analysis.is_jumped_over(stack, stack.index(handler)) for handler in found)
    has_password = any(rule.is_include for rule in parse(commented, name)) or bool(analysis.password_modules(stack))
    if is_jumped_over and first == "key-or-password":
        raise StackError(f"{name}: a jump may skip the line of {found[0].rule.module} (delete that line by hand first)")
    if is_jumped_over or (first == "key" and not has_password):
        return edit.insert_at(commented, name, added_lines, read, first=first, line=found[0].rule.last + 1), replaced
    return edit.insert(commented, name, added_lines, read, first), replaced


def restore(text: str, commented_lines: str) -> str:
    """Return `text` with `commented_lines` in place of their comments.

    Raise StackError if one of these comments was changed, or occurs more often than its line.
    """
    physical = text.split("\n")
    originals = commented_lines.split("\n")[:-1]
    comments = Counter(physical)
    for line, count in Counter(originals).items():
        if comments[_REPLACED + line] < count:
            raise StackError("a line that 'enable' replaced was changed")
        if comments[_REPLACED + line] > count:
            times = "once" if count == 1 else f"{count} times"
            raise StackError(f"'{_REPLACED}{line}' must be in the file exactly {times}")
    for line in originals:
        physical[physical.index(_REPLACED + line)] = line
    return "\n".join(physical)
