"""Validate the numbers given as arguments: python examples/validate.py A-1 A-2."""

import sys

from trunkline import Client
from trunkline.types import Decision, name_of


def main(numbers: list[str]) -> None:
    with Client.from_env() as client:
        for answer in client.members.validate_many(numbers):
            if answer.HasField("error"):
                print(answer.error.message)
            else:
                print(name_of(Decision, answer.validation.decision))


if __name__ == "__main__":
    main(sys.argv[1:] or ["A-1"])
