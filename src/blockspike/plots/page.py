"""One self-contained HTML page of tables and plotly figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment
from plotly.offline import get_plotlyjs

_TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: heading.
        text: paragraph below it, or "".
        tables: shown with numbers of four digits.
        figures: below the tables.
    """

    title: str
    text: str = ""
    tables: Sequence[pd.DataFrame] = ()
    figures: Sequence[go.Figure] = field(default=())


def page(title: str, sections: Sequence[Section], made_by: Mapping[str, Any]) -> str:
    """Render the page; it loads nothing from elsewhere.

    Args:
        title: of the page.
        sections: from top to bottom.
        made_by: commit, versions and machine.
    """
    parts = [
        {
            "title": section.title,
            "text": section.text,
            "tables": [
                table.to_html(index=False, na_rep="–", float_format="{:.4g}".format, border=0)
                for table in section.tables
            ],
            "figures": [
                figure.update_layout(template="simple_white", margin={"t": 60}).to_html(
                    full_html=False, include_plotlyjs=False
                )
                for figure in section.figures
            ],
        }
        for section in sections
    ]
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title, sections=parts, made=time.strftime("%Y-%m-%d %H:%M %z"), made_by=made_by,
        plotlyjs=get_plotlyjs(),
    )  # fmt: skip
