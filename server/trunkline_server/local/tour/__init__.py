"""The tour: one stop for each part of the product, through the client that users have."""

from trunkline_server.local.tour import content, identity, imports, members, stats
from trunkline_server.local.tour.guide import Stop, Tour

STOPS: tuple[tuple[str, Stop], ...] = (
    ("Who may do what", identity.visit),
    ("A caller is on the line", members.visit),
    ("A roster comes in", imports.visit),
    ("What agents read", content.visit),
    ("How are we doing", stats.visit),
)

__all__ = ["STOPS", "Tour"]
