"""How every page of this folder is rendered."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stllava.report import words


def pages() -> Environment:
    """The templates beside this file, every text escaped, with the filters that all pages use."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "points": words.points,
        "policy": words.policy_label,
        "metric": words.metric_label,
        "p_value": words.p_value,
    }
    return environment
