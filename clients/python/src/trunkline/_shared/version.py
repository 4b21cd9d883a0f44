"""The version of this distribution."""

VERSION = "0.1.0"
USER_AGENT = f"trunkline-python/{VERSION}"
