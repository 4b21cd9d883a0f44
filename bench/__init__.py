"""Measurements of Trunkline. `python -m bench list` names them; bench/README.md says how."""
