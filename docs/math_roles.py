"""Turn the mathematics of docstrings (Sphinx roles, which editors and `help()` show well) into what MathJax reads."""

import re

import griffe

ROLE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^([ \t]*)\.\. math::[ \t]*(\S.*)?\n((?:[ \t]*\n|\1[ \t]+\S.*\n?)*)", re.MULTILINE)


def _block(match: re.Match[str]) -> str:
    indent, first, rest = match.groups()
    lines = [line.strip() for line in [first or "", *rest.splitlines()] if line.strip()]
    return "\n".join([f"{indent}$$", *(indent + line for line in lines), f"{indent}$$", "", ""])


class MathRoles(griffe.Extension):
    """Rewrite every docstring when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Replace roles by inline mathematics and directives by displayed mathematics."""
        if obj.docstring:
            obj.docstring.value = BLOCK.sub(_block, ROLE.sub(r"$\1$", obj.docstring.value) + "\n").rstrip("\n")
