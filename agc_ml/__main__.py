"""``python -m agc_ml`` is ``agc-ml``."""

from agc_ml.cli.main import main

if __name__ == "__main__":
    main()
