"""`python -m cacheproxy`."""

from cacheproxy.cli import main

if __name__ == "__main__":
    main()
