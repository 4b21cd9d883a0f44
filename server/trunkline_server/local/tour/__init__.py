"""The tour: one stop for each part of the product, through the client that users have."""

import trunkline_server.local.tour.identity as identity
from trunkline_server.local.tour.guide import Stop, Tour

STOPS: tuple[tuple[str, Stop], ...] = (("Who may do what", identity.visit),)

__all__ = ["STOPS", "Tour"]
