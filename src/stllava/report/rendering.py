"""How every page of this folder is rendered."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stllava.report import wording


def page_environment() -> Environment:
    """The templates beside this file, every text escaped, with the filters that all pages use."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "points": wording.points,
        "policy": wording.policy_label,
        "metric": wording.metric_label,
        "p_value": wording.p_value,
    }
    return environment
