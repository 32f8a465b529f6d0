"""stub"""


def render(report):
    """Nothing yet."""
    return ""
