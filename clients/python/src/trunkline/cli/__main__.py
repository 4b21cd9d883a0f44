"""`python -m trunkline.cli`."""

from trunkline.cli import main

if __name__ == "__main__":
    main()
