"""Pages that need nothing else: templates beside the code that fills them, with one head and one style for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def render(template: Path, values: dict[str, Any]) -> str:
    """The page as HTML; what the template does not call safe is escaped, and a name that is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "report" / "style.css").read_text()
    return environment.get_template(template.name).render(values | {"style": style})
